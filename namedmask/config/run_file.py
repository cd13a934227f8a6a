"""A run file: every knob of a run, one section per stage (sections.py), in one TOML file.

`Config.load(path, overrides=["retrieve.archive_size=200"])` reads, checks and freezes. A key that
neither names has the value of `run.preset` (presets.py), or its default.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pydantic

from namedmask.config.presets import with_preset
from namedmask.config.sections import Sections
from namedmask.config.types import Section
from namedmask.errors import ConfigError
from namedmask.storage import Place, place_of

SPEED_ONLY = (
    "in_flight", "per_host", "device", "processes", "sample_processes", "checkpoint_every",
    "actors", "num_cpus", "num_gpus", "max_failures", "on_device",
)  # fmt: skip
"""Keys of any section that change how fast a verb is, not what it computes, up to rounding.

With several `train.processes`, batch norm and dropout are of each share: more than rounding, less
than another training.
"""


RENAMED = {
    "fetch.workers": "fetch.processes",
    "train.num_workers": "train.processes",
    "train.workers": "train.sample_processes",
    "experts.workers": "experts.sample_processes",
}
"""Keys by their names up to version 0.1; they still load, and a line says so."""

_log = logging.getLogger(__name__)


class Config(Sections):
    """A whole run."""

    @classmethod
    def load(cls, path: Place | str, overrides: Sequence[str] = ()) -> Config:
        """Return the config of a run file with dotted overrides applied.

        `overrides` are `section.key=value`, the value in TOML (`a.b="text"`, `a.b=3`); a bare word
        is text.

        Raises:
            ConfigError: no such file, not TOML, an unknown key, a value out of range.
        """
        path = place_of(path)
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"run file {path} does not exist.") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"run file {path} cannot be read as TOML: {error}") from error
        return cls.of(tree, overrides, place=str(path))

    @classmethod
    def of(
        cls, tree: dict[str, Any], overrides: Sequence[str] = (), place: str = "config"
    ) -> Config:
        """Return the config of a tree of plain values, on its preset if it has one; see `load`."""
        tree = {name: dict(section) if isinstance(section, dict) else section
                for name, section in tree.items()}  # fmt: skip
        for override in overrides:
            apply_override(tree, override)
        tree = with_preset(_with_new_names(tree))
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, place, known_keys)) from None

    def tree(self) -> dict[str, Any]:
        """Return the config as plain values, paths as text: what is saved with the run."""
        return self.model_dump(mode="json")


def settings_of(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the settings a verb's output depends on as one flat dict, `section.key` to value.

    `names` are whole sections (`fetch`) or single keys (`run.seed`); those that only change the
    speed are left out.
    """
    flat = {
        f"{section}.{key}": value
        for section, keys in config.tree().items()
        for key, value in keys.items()
    }
    wanted = set(names)
    return {
        key: value
        for key, value in flat.items()
        if (key in wanted or key.partition(".")[0] in wanted)
        and key.partition(".")[2] not in SPEED_ONLY
    }


def _with_new_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of plain values with renamed keys under their names of today."""
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        keys, new_key = tree.get(section), new.partition(".")[2]
        if isinstance(keys, dict) and key in keys:
            keys = dict(keys)
            tree[section] = {new_key: keys.pop(key), **keys}
            _log.warning("%s is called %s now; the old name still works.", old, new)
    return tree


def known_keys(section: tuple[int | str, ...]) -> list[str]:
    """Return the keys that a section has; the sections, for the empty path."""
    if not section:
        return list(Config.model_fields)
    field = Config.model_fields.get(str(section[0]))
    model = field.annotation if field else None
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, Section) else []
    )


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a tree of plain values, the value in TOML; a bare word is text.

    Raises:
        ConfigError: the text is not of that form.
    """
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not name:
        raise ConfigError(f"override '{override}' is not of the form section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    keys = tree.setdefault(section, {})
    if not isinstance(keys, dict):
        raise ConfigError(
            f"'{section}' is {keys!r}; expected a section [{section}] with keys in it."
        )
    keys[name] = value


def explain(
    error: pydantic.ValidationError,
    place: str,
    known_keys: Callable[[tuple[int | str, ...]], list[str]],
) -> str:
    """Return what is wrong with the values at `place`, a line each."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = known_keys(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."
            lines.append(f"{place}: unknown key '{where}'; {hint}")
        else:
            lines.append(f"{place}: {where}: {problem['msg']}; got {_shown(problem['input'])}.")
    return "\n".join(lines)


def _shown(value: object) -> str:
    """Return a value for a message, without the credentials in a url."""
    return re.sub(r"(?<=://)[^/@\s]*@", "…@", repr(value))


def to_toml(config: Config) -> str:
    """Return the config as a run file; text, numbers, flags and lists are written as in JSON."""
    lines = []
    for section, keys in config.tree().items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines).replace("\x7f", "\\u007f")  # the one character that JSON lets through


def _toml(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    pairs = (f"{_toml(key)} = {_toml(one)}" for key, one in value.items())
    return f"{{{', '.join(pairs)}}}"
