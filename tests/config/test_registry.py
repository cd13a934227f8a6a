"""Factories by registry name and by dotted path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from namedmask.config.registry import resolve
from namedmask.errors import ConfigError

REGISTRY: dict[str, Callable[[], str]] = {"plain": lambda: "plain", "family:": lambda: "family"}


@pytest.mark.parametrize(
    ("name", "expected"), [("plain", "plain"), ("family:x", "family"), ("family:a:b", "family")]
)
def test_resolve_of_a_registered_name_gives_its_entry(name: str, expected: str) -> None:
    assert resolve("thing", name, REGISTRY)() == expected


def test_resolve_of_a_dotted_path_gives_the_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "namedmask_test_plugin.py").write_text("def make():\n    return 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("thing", "namedmask_test_plugin:make", REGISTRY)() == "mine"
    with pytest.raises(ConfigError, match="of module 'namedmask_test_plugin' 'mak' is unknown"):
        resolve("thing", "namedmask_test_plugin:mak", REGISTRY)


def test_resolve_of_a_plug_in_that_lacks_a_package_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "namedmask_test_broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="No module named 'not_there_at_all'"):
        resolve("thing", "namedmask_test_broken:make", REGISTRY)


@pytest.mark.parametrize("name", ["plan", "family", "", "plain:"])
def test_resolve_of_an_unknown_name_tells_the_known(name: str) -> None:
    with pytest.raises(ConfigError, match=f"thing '{name}' is unknown; known: family:, plain"):
        resolve("thing", name, REGISTRY)


@pytest.mark.parametrize("name", [":make", "..up:make", "plain:more"])
def test_resolve_of_a_path_without_a_module_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="thing"):
        resolve("thing", name, REGISTRY)
