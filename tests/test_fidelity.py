"""docs/fidelity.md against the code: its tests exist, its lists are whole."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from namedmask.config import Config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_page_names_only_tests_that_exist() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    there = set(re.findall(r"^def (test_\w+)", source, re.M))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named and named <= there, sorted(named - there)


def test_page_has_a_line_for_each_of_the_23_defects_and_its_test() -> None:
    defects = rows("Defects of the published code")
    assert [int(number) for number, *_ in defects] == list(range(1, 24))
    for number, what, here, held_by in defects:
        assert what and re.search("repaired|kept on purpose|not ours", here), number
        assert "test_" in held_by, number


def test_page_lists_every_departure_that_the_code_tells_of() -> None:
    told = Counter(
        ".".join(path.relative_to(ROOT / "namedmask").with_suffix("").parts)
        for path in (ROOT / "namedmask").rglob("*.py")
        for _ in re.findall(r"Differs:", path.read_text(encoding="utf-8"))
    )
    listed = Counter(module.strip("`") for module, _ in rows("Departures in the code"))
    assert listed == told


def test_page_says_what_was_chosen_for_each_unknown_and_how_to_change_it() -> None:
    unknowns = rows("What nobody knows, and what we chose")
    assert len(unknowns) >= 13
    assert all(len(row) == 3 and all(row) for row in unknowns)


def test_page_names_only_keys_that_exist() -> None:
    tree = Config.of({"run": {"out": "."}}).tree()
    named = set(re.findall(r"`([a-z]+)\.([a-z_]+)(?: = [^`]*)?`", PAGE)) - {("labels", "json")}
    assert named, "the page names keys"
    for section, key in named:
        is_module = (ROOT / "namedmask" / section / f"{key}.py").exists()
        if section in tree and not is_module:
            assert key in tree[section], f"{section}.{key}"


def test_training_counts_no_confusion_matrix() -> None:
    source = (ROOT / "namedmask" / "train" / "loop.py").read_text(encoding="utf-8")
    assert not re.search(r"import.*metrics|ConfusionMatrix", source)


@pytest.mark.parametrize("word", ["paper", "voc_released"])
def test_page_tells_of_each_preset(word: str) -> None:
    assert f'"{word}"' in PAGE
