"""Category sets (names in label order) and the prompt templates that CLIP is asked with.

A category has a label name, which is what the segmenter and the reports call it, and a query,
which is what CLIP is asked; they differ where the name alone is ambiguous ("crane").

A set is one TOML file: `names = [...]` in label order, or ImageNet classes by their index, either
`imagenet_indices = [...]` or `imagenet_absent = [...]` (all the others); and a table `[queries]`
from a name to its query where the two differ.

Differs: the method's ImageNet-S names are each synset's first synonym; ours are open_clip's names,
which tell more namesakes apart ("kite (bird of prey)"), with the method's four renames as queries.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import tomllib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from namedmask.config import CategoriesConfig
from namedmask.errors import ConfigError, unknown_name
from namedmask.schema.columns import IGNORE

PROMPT_TEMPLATES: tuple[str, ...]
"""The method's 85: open_clip's 80 for ImageNet, then five about a scene. Made on first use."""

SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)

PEOPLE = frozenset(
    ("person", "people", "man", "men", "woman", "women", "child", "children", "boy", "girl",
     "human", "rider", "pedestrian", "groom", "diver", "ballplayer")
)  # fmt: skip
"""Words whose categories are people."""

_FOLDER = resources.files("namedmask").joinpath("data", "category_sets")

SHIPPED = tuple(sorted(Path(file.name).stem for file in _FOLDER.iterdir()))
"""Names of the category sets that come with the package."""


@dataclass(frozen=True)
class CategorySet:
    """Categories in label order: label id i + 1 is `names[i]`, asked for as `queries[i]`.

    Raises:
        ConfigError: no names, an empty one, two equal ones, or too many for a label id.
    """

    name: str
    names: tuple[str, ...]
    queries: tuple[str, ...]

    def __post_init__(self) -> None:
        place = f"category set '{self.name}'"
        if not self.names:
            raise ConfigError(f"{place} has no names; give at least one.")
        if len(self.names) >= IGNORE:
            raise ConfigError(
                f"{place} has {len(self.names)} names; label id {IGNORE} would collide with the "
                f"ignore id. Expected at most {IGNORE - 1}."
            )
        _refuse_empty(place, "name", self.names)
        _refuse_empty(place, "query", self.queries)
        _refuse_equal(place, "name", self.names, str)
        _refuse_equal(place, "query", self.queries, str.lower)  # CLIP reads lower case


def load_category_set(name_or_path: str | Path) -> CategorySet:
    """Return a shipped category set by its name, or the one in a TOML file.

    Raises:
        ConfigError: no such set or file, or a file that does not hold a category set.
    """
    path = Path(name_or_path)
    if str(name_or_path) in SHIPPED:
        source = _FOLDER.joinpath(f"{name_or_path}.toml")
    elif path.suffix == ".toml":
        source = path
    else:
        raise unknown_name("category set", str(name_or_path), (*SHIPPED, "a path to a .toml file"))
    try:
        tree = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"category set file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"category set file {path} cannot be read as TOML: {error}") from error
    return _category_set_of_tree(path.stem, tree)


def category_set_of(config: CategoriesConfig) -> CategorySet:
    """Return the category set that the `categories` section asks for.

    Raises:
        ConfigError: neither `set` nor `names` is given, or both are; or the set itself is wrong.
    """
    if config.set and config.names:
        raise ConfigError("categories: both 'set' and 'names' are given; remove one of them.")
    if not config.set and not config.names:
        raise ConfigError(
            "categories: no category is given. Set categories.names to a list of names, or "
            f"categories.set to one of {', '.join(SHIPPED)} or a TOML file."
        )
    if config.set:
        category_set = load_category_set(config.set)
    else:
        category_set = CategorySet("custom", config.names, config.names)
    for name in config.each:
        if name not in category_set.names:
            raise unknown_name("categories.each: category", name, category_set.names)
    return category_set


def configured_names(config: CategoriesConfig) -> tuple[str, ...]:
    """Return the label names that the `categories` section gives, none where it gives nothing."""
    return category_set_of(config).names if config.set or config.names else ()


def templates_of(config: CategoriesConfig) -> tuple[str, ...]:
    """Return the prompt templates of the `categories` section; the method's 85 when it gives none.

    Raises:
        ConfigError: a template without exactly one `{}`.
    """
    for template in config.templates:
        if template.count("{}") != 1:
            raise ConfigError(f"categories.templates: '{template}' must hold {{}} exactly once.")
    return config.templates or _prompt_templates()


def face_warning(config: CategoriesConfig, faces_enabled: bool) -> str:
    """Return what the face filter would do to categories of people; empty where there are none.

    Raises:
        ConfigError: as `category_set_of`.
    """
    names = [one for one in category_set_of(config).names if PEOPLE & {*one.lower().split()}]
    if not faces_enabled or not names:
        return ""
    return (
        f"faces.enabled drops every image with a face, and these categories are people: "
        f"{', '.join(names)}. What is left of their archives shows people from behind or afar, or "
        "none; other categories lose the images with people in them. The released VOC2012 weights "
        "were made without it: set faces.enabled = false where that is allowed."
    )


def fill(template: str, query: str) -> str:
    """Return the prompt of a template for a query; other braces stay as they are."""
    return template.replace("{}", query)


def slug(name: str) -> str:
    """Return a file-name-safe text for a label name: "crane bird" becomes "crane-bird".

    Not unique by itself: "a/b" and "a b" share one. Put the label id before it.
    """
    ascii_text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:48]
    return safe or hashlib.sha256(name.encode()).hexdigest()[:8]


def __getattr__(name: str) -> Any:
    if name == "PROMPT_TEMPLATES":
        return _prompt_templates()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _prompt_templates() -> tuple[str, ...]:
    filled = (template("{}") for template in _open_clip_lists().OPENAI_IMAGENET_TEMPLATES)
    return (*filled, *SCENE_TEMPLATES)


@cache
def _open_clip_lists() -> ModuleType:
    """Return open_clip's module of names and templates, loaded by itself.

    Importing the package around it takes seconds: it brings torch, torchvision and timm.
    """
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.origin is not None
    path = Path(package.origin).with_name("zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("namedmask_open_clip_lists", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imagenet_names() -> tuple[str, ...]:
    """Return open_clip's names of the 1000 ImageNet classes, in the order of sorted wnids."""
    return tuple(_open_clip_lists().IMAGENET_CLASSNAMES)


def _category_set_of_tree(name: str, tree: Mapping[str, Any]) -> CategorySet:
    place = f"category set '{name}'"
    queries = tree.get("queries", {})
    sources = [key for key in _NAMES_FROM if key in tree]
    for key in tree:
        if key not in (*_NAMES_FROM, "queries"):
            raise unknown_name(f"{place}: key", key, (*_NAMES_FROM, "queries"))
    if len(sources) != 1:
        raise ConfigError(
            f"{place}: expected one of {', '.join(_NAMES_FROM)}; "
            f"got {' and '.join(sources) or 'none'}."
        )
    values = tree[sources[0]]
    if not isinstance(values, list) or not isinstance(queries, dict):
        raise ConfigError(f"{place}: '{sources[0]}' must be a list and 'queries' a table.")
    names = _NAMES_FROM[sources[0]](place, values)
    for label_name in queries:
        if label_name not in names:
            raise unknown_name(f"{place}: queries: name", label_name, names)
    return CategorySet(name, names, tuple(queries.get(label, label) for label in names))


def _names_as_given(place: str, values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(values)


def _names_of_indices(place: str, values: Sequence[Any]) -> tuple[str, ...]:
    names = imagenet_names()
    for value in values:
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise ConfigError(f"{place}: {value!r} is no ImageNet index; expected 0 to 999.")
    return tuple(names[index] for index in values)


def _names_of_the_others(place: str, values: Sequence[Any]) -> tuple[str, ...]:
    _names_of_indices(place, values)
    return tuple(name for index, name in enumerate(imagenet_names()) if index not in values)


_NAMES_FROM: dict[str, Callable[[str, Sequence[Any]], tuple[str, ...]]] = {
    "names": _names_as_given,
    "imagenet_indices": _names_of_indices,
    "imagenet_absent": _names_of_the_others,
}


def _refuse_empty(place: str, kind: str, texts: Sequence[Any]) -> None:
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{place}: {kind} {index + 1} is {text!r}; expected a text.")


def _refuse_equal(place: str, kind: str, texts: Sequence[str], key: Callable[[str], str]) -> None:
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        earlier = first.setdefault(key(text), index)
        if earlier != index:
            raise ConfigError(
                f"{place}: {kind} {earlier + 1} and {kind} {index + 1} are both '{text}'. Remove "
                "one, or tell them apart as 'crane bird' and 'tower crane' do."
            )
