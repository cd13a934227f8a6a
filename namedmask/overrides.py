"""The words around a run file: dotted overrides, and what is wrong with it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pydantic

from namedmask.errors import ConfigError


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
