"""A run file: every knob of a run, one section a stage (sections.py), in one TOML file.

`Config.load(path, overrides=["retrieve.archive_size=200"])` reads, checks and freezes. What neither
says is as `run.preset` has it (presets.py), or at its default. `hash_of`
names what a result depends on, so that a finished run is recognized and a changed one is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pydantic

from namedmask.config.presets import with_preset
from namedmask.config.sections import (
    AugmentConfig,
    BaselinesConfig,
    BilateralConfig,
    CategoriesConfig,
    EmbedConfig,
    EvaluateConfig,
    ExpertsConfig,
    FacesConfig,
    FetchConfig,
    MetadataConfig,
    RayConfig,
    RetrieveConfig,
    RunConfig,
    SaliencyConfig,
    SearchConfig,
    SegmenterConfig,
    TrainConfig,
    VectorsConfig,
)
from namedmask.config.types import Section
from namedmask.errors import ConfigError, InputError
from namedmask.storage import Place, place_of

SPEED_ONLY = (
    "in_flight", "per_host", "device", "workers", "checkpoint_every",
    "actors", "num_cpus", "num_gpus", "num_workers", "max_failures", "on_device",
)  # fmt: skip
"""Keys of any section that change how fast a verb is, not what it computes, up to rounding.

With several `num_workers`, batch norm and dropout are of each one's share: more than rounding, less
than another training.
"""


class Config(Section):
    """A whole run."""

    run: RunConfig
    ray: RayConfig = RayConfig()
    categories: CategoriesConfig = CategoriesConfig()
    metadata: MetadataConfig = MetadataConfig()
    vectors: VectorsConfig = VectorsConfig()
    fetch: FetchConfig = FetchConfig()
    embed: EmbedConfig = EmbedConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    search: SearchConfig = SearchConfig()
    faces: FacesConfig = FacesConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    bilateral: BilateralConfig = BilateralConfig()
    augment: AugmentConfig = AugmentConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    experts: ExpertsConfig = ExpertsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    baselines: BaselinesConfig = BaselinesConfig()

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
        tree = with_preset(tree)
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, place, known_keys)) from None

    def tree(self) -> dict[str, Any]:
        """Return the config as plain values, paths as text: what is saved with the run."""
        return self.model_dump(mode="json")

    def hash_of(self, *sections: str) -> str:
        """Return 16 hex digits over these sections: equal digits, equal results."""
        tree = self.tree()
        text = json.dumps({name: tree[name] for name in sections}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def config_of_run(run: Place, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a run file, or of a run folder wherever it lies now.

    Raises:
        InputError: it is neither, or a key or value in it is wrong.
    """
    if not run.is_dir():
        return Config.load(run, overrides)
    if not (run / "run.toml").is_file():
        raise InputError(
            f"{run} holds no run: run.toml is missing. Give a run file, or the folder that run.out "
            "named."
        )
    return Config.load(run / "run.toml", [f"run.out={json.dumps(str(run))}", *overrides])
