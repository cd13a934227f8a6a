"""Category sets (names in label order) and the prompt templates for CLIP's text encoder.

A category has a label name, which the segmenter and the reports use, and a query, which goes into
the prompts for CLIP. The two differ where the name alone is ambiguous ("crane").

A category set is one TOML file. It holds `names = [...]` in label order, or ImageNet classes by
index: either `imagenet_indices = [...]` or `imagenet_absent = [...]` (all classes but these). An
optional table `[queries]` maps a name to its query where the two differ.

Differs: the method's ImageNet-S names are each synset's first synonym; here they are open_clip's
names, which distinguish more homonyms ("kite (bird of prey)"). The method's four renames are kept
as queries.
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
from namedmask.storage.texts import text_of

PROMPT_TEMPLATES: tuple[str, ...]
"""The method's 85 prompt templates: open_clip's 80 for ImageNet, then `SCENE_TEMPLATES`.

They are loaded on first use.
"""

SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""The method's five prompt templates that mention a scene."""

PEOPLE = frozenset(
    ("person", "people", "man", "men", "woman", "women", "child", "children", "boy", "girl",
     "human", "rider", "pedestrian", "groom", "diver", "ballplayer")
)  # fmt: skip
"""Words that mark a category as people if its name contains them."""

BACKGROUND_NAME = "background"
"""Name of label id 0, which no category can have."""

_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
"""Classes of the characters that change the direction of the text after them."""

_FOLDER = resources.files("namedmask").joinpath("data", "category_sets")

SHIPPED = tuple(sorted(Path(file.name).stem for file in _FOLDER.iterdir()))
"""Names of the category sets that come with the package."""


@dataclass(frozen=True)
class CategorySet:
    """Categories in label order; label id i + 1 has the name `names[i]` and the query `queries[i]`.

    Raises:
        ConfigError: there are no names, a name is `background`, a name or query is empty or holds
            control characters, two names or two queries are equal but for white space or the
            form of their characters, or there are more names than label ids.
    """

    name: str
    names: tuple[str, ...]
    queries: tuple[str, ...]

    def __post_init__(self) -> None:
        location = f"category set '{self.name}'"
        if not self.names:
            raise ConfigError(f"{location} has no names; give at least one.")
        if len(self.names) >= IGNORE:
            raise ConfigError(
                f"{location} has {len(self.names)} names; label id {IGNORE} would collide with the "
                f"ignore id. Expected at most {IGNORE - 1}."
            )
        refuse_label_names(location, self.names)
        _refuse_unreadable(location, "query", self.queries)
        # CLIP lowercases texts
        _refuse_equal(location, "query", self.queries, lambda text: plain(text).lower())


def load_category_set(name_or_path: str | Path) -> CategorySet:
    """Return the shipped category set of this name, or the category set in a TOML file.

    Raises:
        ConfigError: the set or the file does not exist, or the file does not hold a category set.
    """
    path = Path(name_or_path)
    if str(name_or_path) in SHIPPED:
        source = _FOLDER.joinpath(f"{name_or_path}.toml")
    elif path.suffix == ".toml":
        source = path
    else:
        raise unknown_name("category set", str(name_or_path), (*SHIPPED, "a path to a .toml file"))
    try:
        tree = tomllib.loads(text_of(source.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(f"category set file {path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"category set file {path} cannot be read as TOML: {error}") from error
    return _category_set_of_tree(path.stem, tree)


def category_set_of(config: CategoriesConfig) -> CategorySet:
    """Return the category set that the `categories` section selects.

    Raises:
        ConfigError: the section gives neither `set` nor `names`, or both; the set is not valid; or
            `each` has settings for a category that is not in the set.
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
    """Return the label names of the `categories` section, or () if it selects no category.

    Raises:
        ConfigError: as `category_set_of`, except that the section may be empty.
    """
    return category_set_of(config).names if config.set or config.names else ()


def templates_of(config: CategoriesConfig) -> tuple[str, ...]:
    """Return the prompt templates of the `categories` section, by default the method's 85.

    Raises:
        ConfigError: a template does not contain `{}` exactly once.
    """
    for template in config.templates:
        if template.count("{}") != 1:
            raise ConfigError(f"categories.templates: '{template}' must hold {{}} exactly once.")
    return config.templates or _prompt_templates()


def face_warning(config: CategoriesConfig, faces_enabled: bool) -> str:
    """Return a warning if the face filter is on and categories are people; otherwise "".

    Raises:
        ConfigError: as `category_set_of`.
    """
    names = [name for name in category_set_of(config).names if PEOPLE & {*name.lower().split()}]
    if not faces_enabled or not names:
        return ""
    return (
        f"faces.enabled drops every image with a face, and these categories are people: "
        f"{', '.join(names)}. The images left in their archives show people from behind or from "
        "afar, or nobody. Other categories lose their images with people. The released VOC2012 "
        "weights were made without the face filter. Set faces.enabled = false where that is "
        "allowed."
    )


def fill(template: str, query: str) -> str:
    """Return the template with `{}` replaced by the query; other braces stay as they are."""
    return template.replace("{}", query)


def slug(name: str) -> str:
    """Return a label name as text that is safe in file names: "crane bird" becomes "crane-bird".

    The result is not unique: "a/b" and "a b" both become "a-b". Put the label id in front of it.
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
    """Return open_clip's module of class names and templates without importing open_clip.

    Importing the whole package takes seconds because it imports torch, torchvision and timm.
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
    """Return open_clip's names of the 1,000 ImageNet classes, in the order of the sorted wnids."""
    return tuple(_open_clip_lists().IMAGENET_CLASSNAMES)


def _category_set_of_tree(name: str, tree: Mapping[str, Any]) -> CategorySet:
    location = f"category set '{name}'"
    queries = tree.get("queries", {})
    sources = [key for key in _NAMES_FROM if key in tree]
    for key in tree:
        if key not in (*_NAMES_FROM, "queries"):
            raise unknown_name(f"{location}: key", key, (*_NAMES_FROM, "queries"))
    if len(sources) != 1:
        raise ConfigError(
            f"{location}: expected one of {', '.join(_NAMES_FROM)}; "
            f"got {' and '.join(sources) or 'none'}."
        )
    values = tree[sources[0]]
    if not isinstance(values, list) or not isinstance(queries, dict):
        raise ConfigError(f"{location}: '{sources[0]}' must be a list and 'queries' a table.")
    names = _NAMES_FROM[sources[0]](location, values)
    for label_name in queries:
        if label_name not in names:
            raise unknown_name(f"{location}: queries: name", label_name, names)
    return CategorySet(name, names, tuple(queries.get(label, label) for label in names))


def _names_as_given(location: str, values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(values)


def _names_of_indices(location: str, values: Sequence[Any]) -> tuple[str, ...]:
    names = imagenet_names()
    for value in values:
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise ConfigError(f"{location}: {value!r} is not an ImageNet index; expected 0 to 999.")
    return tuple(names[index] for index in values)


def _names_of_other_indices(location: str, values: Sequence[Any]) -> tuple[str, ...]:
    _names_of_indices(location, values)
    return tuple(name for index, name in enumerate(imagenet_names()) if index not in values)


_NAMES_FROM: dict[str, Callable[[str, Sequence[Any]], tuple[str, ...]]] = {
    "names": _names_as_given,
    "imagenet_indices": _names_of_indices,
    "imagenet_absent": _names_of_other_indices,
}


def refuse_label_names(location: str, names: Sequence[Any]) -> None:
    """Raise unless all label names can be told apart, from each other and from the background.

    Raises:
        ConfigError: as for `CategorySet`; its message begins with `location`.
    """
    _refuse_unreadable(location, "name", names)
    for index, name in enumerate(names):
        if plain(name).casefold() == BACKGROUND_NAME:
            raise ConfigError(
                f"{location}: name {index + 1} is {name!r}, which is label id 0 of every segmenter "
                "and needs no images. Leave it out of the names."
            )
    _refuse_equal(location, "name", names, plain)


def plain(text: str) -> str:
    """Return a text by which texts are compared, with white space and characters in one form."""
    visible = (letter for letter in text if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", "".join(visible)).split())


def _refuse_unreadable(location: str, kind: str, texts: Sequence[Any]) -> None:
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not plain(text):
            raise ConfigError(f"{location}: {kind} {index + 1} is {text!r}; expected text.")
        if any(_is_control(letter) for letter in text):
            raise ConfigError(
                f"{location}: {kind} {index + 1} is {text!r}; expected text without line ends, "
                "tabs and other control characters. Remove them."
            )


def _is_control(letter: str) -> bool:
    """Return whether a character ends a line, controls a terminal, or turns the text around."""
    is_control = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
    return is_control or unicodedata.bidirectional(letter) in _TURNS


def _refuse_equal(
    location: str, kind: str, texts: Sequence[str], key: Callable[[str], str]
) -> None:
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        earlier = first.setdefault(key(text), index)
        if earlier != index:
            raise ConfigError(
                f"{location}: {kind} {earlier + 1} and {kind} {index + 1} are both {text!r}. "
                "Remove one of them, or make them differ, as 'crane bird' and 'tower crane' do."
            )
