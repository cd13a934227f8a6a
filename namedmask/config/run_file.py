"""A run file: all settings of a run in one TOML file, with one section per stage (sections.py).

`Config.load(path, overrides=["retrieve.archive_size=200"])` reads and checks the file, and returns
a frozen config. A key that is neither in the file nor in the overrides has the value from
`run.preset` (presets.py), or else its default.
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
from namedmask.storage.texts import text_of

SPEED_ONLY = (
    "in_flight", "per_host", "device", "processes", "sample_processes", "checkpoint_every",
    "actors", "num_cpus", "num_gpus", "max_failures", "on_device",
)  # fmt: skip
"""Keys, in any section, that change the speed of a verb but not its result, except for rounding.

With several `train.processes`, each process computes batch norm and dropout on its own share of the
batch. The result then differs by more than rounding, but by less than that of another seed.
"""

CHANGEABLE = ("proxy", "opt_out_tags")
"""Keys, in any section, that may change within a run: the way to the images, and which wishes of
their owners are honored, which may become stricter at any time."""

RENAMED = {
    "fetch.workers": "fetch.processes",
    "train.num_workers": "train.processes",
    "train.workers": "train.sample_processes",
    "experts.workers": "experts.sample_processes",
}
"""Current names of keys, by their names up to version 0.1, which still load with a warning."""

_log = logging.getLogger(__name__)


class Config(Sections):
    """The config of a whole run, which holds every section, validated and frozen."""

    @classmethod
    def load(cls, path: Place | str, overrides: Sequence[str] = ()) -> Config:
        """Return the config of a run file with dotted overrides applied.

        Each override is `section.key=value` with a TOML value (`a.b="text"`, `a.b=3`). A value that
        is not TOML, such as a bare word, is text.

        Raises:
            ConfigError: the file does not exist or is not TOML, an override is malformed, a key or
                the preset is unknown, or a value has the wrong type or is out of range.
        """
        path = place_of(path)
        try:
            tree = tomllib.loads(text_of(path.read_bytes()))
        except FileNotFoundError:
            raise ConfigError(f"run file {path} does not exist.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"run file {path} cannot be read as TOML: {error}") from error
        return cls.of(tree, overrides, place=str(path))

    @classmethod
    def of(
        cls, tree: dict[str, Any], overrides: Sequence[str] = (), place: str = "config"
    ) -> Config:
        """Return the config of a tree of plain values, completed by its preset; see `load`.

        `place` names the tree's origin in error messages.
        """
        tree = {name: dict(section) if isinstance(section, dict) else section
                for name, section in tree.items()}  # fmt: skip
        for override in overrides:
            apply_override(tree, override)
        tree = with_preset(_with_new_names(tree))
        _refuse_broken_text(tree, place)
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, place, known_keys)) from None

    def tree(self) -> dict[str, Any]:
        """Return the config as plain values with paths as text, as it is saved with a run."""
        return self.model_dump(mode="json")


def _refuse_broken_text(tree: dict[str, Any], place: str) -> None:
    """Raise ConfigError if a text cannot be written as UTF-8, as bytes of a command line may be."""
    for section, keys in tree.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            try:
                json.dumps([section, key, value], ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                raise ConfigError(
                    f"{place}: {section}.{key} holds bytes that are not UTF-8 text. Give a text or "
                    "path in UTF-8."
                ) from None


def settings_of(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Return the settings in some sections and keys as a flat dict, `section.key` → value.

    `names` are whole sections (`fetch`) or single keys (`run.seed`). Keys that only change the
    speed (`SPEED_ONLY`), or may change within a run (`CHANGEABLE`), are left out.
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
        and key.partition(".")[2] not in (*SPEED_ONLY, *CHANGEABLE)
    }


def _with_new_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of plain values with the current names of renamed keys, and log a warning."""
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        keys, new_key = tree.get(section), new.partition(".")[2]
        if isinstance(keys, dict) and key in keys:
            keys = dict(keys)
            tree[section] = {new_key: keys.pop(key), **keys}
            _log.warning("%s is now called %s; the old name still works.", old, new)
    return tree


def known_keys(section: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section at a path; for the empty path, the names of all sections."""
    if not section:
        return list(Config.model_fields)
    field = Config.model_fields.get(str(section[0]))
    model = field.annotation if field else None
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, Section) else []
    )


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the value of an override `section.key=value` in a tree of plain values, in place.

    The value is parsed as TOML; if it is not TOML, it is text.

    Raises:
        ConfigError: the override does not have this form, or the tree has a plain value in place of
            the section.
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
    """Return one line per unknown key or invalid value in a config.

    Args:
        error: the validation error.
        place: the file or config with these values, as the beginning of each line.
        known_keys: returns the known keys of the section at a path.
    """
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
    """Return a value as text for a message, with the credentials in urls removed."""
    return re.sub(r"(?<=://)[^/@\s]*@", "…@", repr(value))


def to_toml(config: Config) -> str:
    """Return the text of a run file with every key of a config.

    Strings, numbers, booleans and lists are written as JSON, which is valid TOML.
    """
    lines = []
    for section, keys in config.tree().items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines).replace("\x7f", "\\u007f")  # JSON leaves this one raw, TOML forbids it


def _toml(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    pairs = (f"{_toml(key)} = {_toml(item)}" for key, item in value.items())
    return f"{{{', '.join(pairs)}}}"
