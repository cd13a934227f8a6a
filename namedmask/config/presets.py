"""Presets: recipes by name, whose values stand in for the defaults of a run file.

A preset is a TOML file in `data/presets` with sections as in a run file; it may build on another.
What the run file or an override says itself beats it. The config that is saved with a run has every
value in it, so a later change of a preset changes no run that was begun.
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
"""Names of the presets that come with the package."""


def with_preset(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of plain values with those of its `run.preset` where it has none of its own.

    Raises:
        ConfigError: no such preset.
    """
    run = tree.get("run")
    name = run.get("preset", "") if isinstance(run, Mapping) else ""
    if not isinstance(name, str) or not name:
        return dict(tree)
    return _merged(preset_values(name), tree)


def preset_values(name: str) -> dict[str, dict[str, Any]]:
    """Return the values of a preset by section and key, those of the one it builds on included.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise unknown_name("run.preset", name, PRESETS)
    own = tomllib.loads(_FOLDER.joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    ground = own.get("run", {}).pop("preset", "")
    return _merged(preset_values(ground), own) if ground else own


def departures(tree: Mapping[str, Any]) -> list[str]:
    """Return in what a config's tree departs from its own preset, a line each; [] without one."""
    name = tree["run"]["preset"]
    return [
        f"{section}.{key}: {value!r}, here {tree[section][key]!r}"
        for section, keys in (preset_values(name) if name else {}).items()
        for key, value in keys.items()
        if tree[section][key] != value
    ]


def _merged(ground: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return both trees as one; where both have a key, that of `over`."""
    both = dict(over)
    for section, keys in ground.items():
        own = over.get(section, {})
        if isinstance(own, Mapping):  # what is no section is told by the config
            both[section] = {**keys, **own}
    return both
