"""Category sets and prompt templates."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from namedmask import categories
from namedmask.categories import (
    SHIPPED,
    CategorySet,
    category_set_of,
    imagenet_names,
    load_category_set,
    plain,
    slug,
    templates_of,
)
from namedmask.config import CategoriesConfig
from namedmask.errors import ConfigError
from namedmask.schema.columns import IGNORE


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_set(folder: Path, text: str) -> Path:
    path = folder / "birds.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_prompt_templates_are_the_methods_85() -> None:
    templates = categories.PROMPT_TEMPLATES
    assert len(set(templates)) == 85
    assert all(template.count("{}") == 1 and template.endswith(".") for template in templates)
    assert digest(list(templates)) == "f87d863dc7a96d46"  # of the list that the method was run with


def test_categories_used_bring_no_torch() -> None:
    code = (
        "import sys; from namedmask import categories as c; c.PROMPT_TEMPLATES;"
        "c.load_category_set('imagenet_s_50'); sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("50", 50, "6f9554733c380a83"), ("300", 300, "f91ced80f15b9e79"),
     ("919", 919, "a8cd958f0abfa697")],
)  # fmt: skip
def test_imagenet_s_set_has_the_benchmarks_classes_in_its_order(
    name: str, count: int, expected: str
) -> None:
    category_set = load_category_set(f"imagenet_s_{name}")
    indices = [imagenet_names().index(label) for label in category_set.names]
    assert len(indices) == count
    assert indices == sorted(indices)  # as wnids are
    assert digest([str(index) for index in indices]) == expected


def test_imagenet_s_919_asks_for_namesakes_in_the_methods_words() -> None:
    category_set = load_category_set("imagenet_s_919")
    asked = dict(zip(category_set.names, category_set.queries, strict=True))
    assert asked["crane bird"] == "crane bird"
    assert asked["construction crane"] == "tower crane"
    assert asked["cardigan"] == "cardigan sweater"
    assert asked["Cardigan Welsh Corgi"] == "cardigan welsh corgi"


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("voc2012", 20, "ae17fbef2d3995db"), ("coco2017", 80, "d7654b2610157284"),
     ("coca", 80, "9fa5d062a9cda86f"), ("cityscapes_object", 14, "67b59f0e9e33362b")],
)  # fmt: skip
def test_benchmark_set_has_its_names_in_label_order(name: str, count: int, expected: str) -> None:
    names = load_category_set(name).names
    assert len(names) == count
    assert digest(list(names)) == expected


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_set_loads_and_its_slugs_differ(name: str) -> None:
    category_set = load_category_set(name)
    assert category_set.name == name
    assert len({slug(label) for label in category_set.names}) == len(category_set.names)


def test_set_from_file_keeps_label_order_and_queries(tmp_path: Path) -> None:
    text = 'names = ["heron", "crane"]\n[queries]\ncrane = "crane bird"\n'
    category_set = load_category_set(write_set(tmp_path, text))
    assert category_set == CategorySet("birds", ("heron", "crane"), ("heron", "crane bird"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names = []", "no names"),
        ('names = ["a", " "]', "name 2 is ' '"),
        ('names = ["a", 3]', "name 2 is 3"),
        ('names = "a"', "must be a list"),
        ('names = ["crane", "gull", "crane"]', "name 1 and name 3 are both 'crane'"),
        ('names = ["Crane", "crane"]', "query 1 and query 2 are both"),
        ('names = ["a"]\n[queries]\nb = "c"', "name 'b' is unknown"),
        ('names = ["a"]\ncolour = 3', "key 'colour' is unknown"),
        ('names = ["a"]\nimagenet_indices = [3]', "got names and imagenet_indices"),
        ("[queries]", "got none"),
        ("imagenet_indices = [1000]", "1000 is not an ImageNet index"),
        ("imagenet_absent = [-1]", "-1 is not an ImageNet index"),
        ("names = [", "cannot be read as TOML"),
    ],
)
def test_wrong_set_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_category_set(write_set(tmp_path, text))
    assert "birds" in str(caught.value)


def test_missing_set_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_category_set(tmp_path / "nothing.toml")


def test_unknown_set_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'voc2012'"):
        load_category_set("voc2021")


def test_config_with_names_gives_them_in_order() -> None:
    category_set = category_set_of(CategoriesConfig(names=("gull", "crane bird")))
    assert category_set.names == category_set.queries == ("gull", "crane bird")


def test_config_with_a_set_gives_that_set() -> None:
    assert category_set_of(CategoriesConfig(set="voc2012")) == load_category_set("voc2012")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CategoriesConfig(), "no category is given"),
        (CategoriesConfig(set="coca", names=("a",)), "both 'set' and 'names'"),
        (CategoriesConfig(names=tuple(map(str, range(IGNORE)))), "collide with the ignore id"),
    ],
)
def test_config_without_a_usable_set_is_refused(config: CategoriesConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        category_set_of(config)


def test_templates_of_config_default_to_the_85_and_need_one_slot() -> None:
    assert templates_of(CategoriesConfig()) == categories.PROMPT_TEMPLATES
    assert templates_of(CategoriesConfig(templates=("{}",))) == ("{}",)
    with pytest.raises(ConfigError, match="exactly once"):
        templates_of(CategoriesConfig(templates=("a photo",)))


def test_fill_leaves_other_braces_alone() -> None:
    assert categories.fill("a {} of {x}", "{crane}") == "a {crane} of {x}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("crane bird", "crane-bird"), ("tv/monitor", "tv-monitor"), ("Café", "cafe"),
     ("../..", "[0-9a-f]{8}"), ("猫", "[0-9a-f]{8}"), ("x" * 300, "x{48}")],
)  # fmt: skip
def test_slug_is_safe_in_a_file_name(name: str, expected: str) -> None:
    assert re.fullmatch(expected, slug(name))


@pytest.mark.parametrize(
    "name",
    ["background", "Background", "BACKGROUND", " background ", "back\u200bground", "ｂackground",
     "\u00a0background", "background\ufeff"],
)  # fmt: skip
def test_background_is_no_category_however_it_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name 2 is .* label id 0"):
        category_set_of(CategoriesConfig(names=("cat", name)))
    path = tmp_path / "set.toml"
    path.write_text(f'names = ["cat", "{name}"]', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"category set 'set': name 2 is .* label id 0"):
        load_category_set(path)


@pytest.mark.parametrize("name", ["", " ", "\u00a0", "\u200b", "\ufeff \u2060"])
def test_name_without_a_visible_character_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name 1 is .*; expected text"):
        category_set_of(CategoriesConfig(names=(name,)))


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\tb", "\x1b[2J", "a\x00", "a\x7f", "a\x9b", "a\u2028b", "\u202egac", "\ud800"],
)
def test_name_with_a_control_character_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name 1 is .* control characters") as caught:
        category_set_of(CategoriesConfig.model_construct(names=(name,)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("one", "other"),
    [("cr\u00e8me", "cre\u0300me"), ("cat", " cat"), ("polar bear", "polar  bear"),
     ("fish", "\ufb01sh"), ("polar bear", "polar\u00a0bear"), ("cat", "c\u00adat")],
)  # fmt: skip
def test_names_that_look_alike_are_refused(one: str, other: str) -> None:
    queries = ("first", "second")
    with pytest.raises(ConfigError, match="name 1 and name 2 are both"):
        CategorySet("two", (one, other), queries)
    with pytest.raises(ConfigError, match="query 1 and query 2 are both"):
        CategorySet("two", queries, (one, other))


@pytest.mark.parametrize(
    "name", ["crème brûlée", "猫", "می\u200cخواهم", "👩\u200d🚀", "(x)", "C++", "№ 5"]
)
def test_names_in_any_script_are_kept_as_they_are(name: str) -> None:
    assert category_set_of(CategoriesConfig(names=(name, "cat"))).names == (name, "cat")


def test_generated_names_are_kept_or_refused_in_one_line() -> None:
    rng = np.random.default_rng(0)
    odd = [0, 9, 10, 27, 127, 0xA0, 0xAD, 0x200B, 0x200D, 0x2028, 0x202E, 0x2066, 0x3000, 0xD800]
    odd += [0xFEFF, 0xFB01, 0x1F600, 0x10FFFF]
    letters = [*"abcdefghij" * 4, *"ab \u00e9e\u0301", *map(chr, odd), "background"]
    kept = refused = 0
    for _ in range(2000):
        names = tuple(
            "".join(letters[n] for n in rng.integers(0, len(letters), rng.integers(0, 4)))
            for _ in range(rng.integers(1, 4))
        )
        try:
            made = CategorySet("any", names, names)
        except ConfigError as error:
            refused += 1
            assert str(error).isprintable(), names
            continue
        kept += 1
        assert made.names == names
        assert len({plain(name) for name in names}) == len(names)
        assert all(plain(name) not in ("", "background") for name in names)
        assert all(name.encode() and "\n" not in name for name in names)
    assert min(kept, refused) > 300
