"""Presets: named recipes whose values replace the defaults of a run file.

A preset is a TOML file in `data/presets` with the sections of a run file. It may build on another
preset, which its own `run.preset` names. Values in the run file and overrides take precedence over
the preset. The config that is saved with a run holds every value, so a later change of a preset
does not affect existing runs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from namedmask.errors import unknown_name

_FOLDER = resources.files("namedmask").joinpath("data", "presets")

PRESETS = tuple(sorted(Path(file.name).stem for file in _FOLDER.iterdir()))
"""Names of the presets in the package."""


def with_preset(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's tree of plain values, with the preset's value for each absent key.

    The key `run.preset` names the preset. Without it, the tree is returned unchanged.

    Raises:
        ConfigError: there is no such preset.
    """
    run = tree.get("run")
    name = run.get("preset", "") if isinstance(run, Mapping) else ""
    if not isinstance(name, str) or not name:
        return dict(tree)
    return _merged(preset_values(name), tree)


def preset_values(name: str) -> dict[str, dict[str, Any]]:
    """Return the values of a preset by section and key, including those of its parent preset.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise unknown_name("run.preset", name, PRESETS)
    own = tomllib.loads(_FOLDER.joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    parent = own.get("run", {}).pop("preset", "")
    return _merged(preset_values(parent), own) if parent else own


def departures(tree: Mapping[str, Any]) -> list[str]:
    """Return one line per value in a config's tree that differs from the value in its preset.

    The list is empty if the config has no preset.
    """
    name = tree["run"]["preset"]
    return [
        f"{section}.{key}: {value!r}, here {tree[section][key]!r}"
        for section, keys in (preset_values(name) if name else {}).items()
        for key, value in keys.items()
        if tree[section][key] != value
    ]


def _merged(defaults: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return both trees merged; for a key in both, the value of `tree` counts."""
    merged = dict(tree)
    for section, keys in defaults.items():
        own = tree.get(section, {})
        if isinstance(own, Mapping):  # the config reports values that are not sections
            merged[section] = {**keys, **own}
    return merged
