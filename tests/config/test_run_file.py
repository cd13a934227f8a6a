"""Run files: read, overridden, refused; the shipped ones load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from namedmask.config import Config
from namedmask.config.run_file import to_toml
from namedmask.errors import ConfigError

RUNS = Path(__file__).parents[2] / "namedmask" / "data" / "runs"
SHIPPED = sorted(RUNS.glob("*.toml"))
CHOSEN = {("run", "out"), ("categories", "set"), ("metadata", "source")}


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nout = "out"\n[retrieve]\narchive_size = 40\n', encoding="utf-8")
    return path


def test_load_small_file_keeps_values_and_defaults(run_file: Path) -> None:
    config = Config.load(run_file)
    assert config.retrieve.archive_size == 40
    assert config.retrieve.near_duplicate_cosine == 0.94
    assert config.run.out == Path("out")


def test_load_overrides_take_toml_values_and_bare_words(run_file: Path) -> None:
    overrides = [
        "retrieve.archive_size=7",
        "faces.enabled=false",
        "faces.scales=[1.0, 0.25]",
        "embed.model=open_clip:ViT-L-14",
        'categories.names=["a cat", "a dog"]',
    ]
    config = Config.load(run_file, overrides)
    assert config.retrieve.archive_size == 7
    assert config.faces.enabled is False
    assert config.faces.scales == (1.0, 0.25)
    assert config.embed.model == "open_clip:ViT-L-14"
    assert config.categories.names == ("a cat", "a dog")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retrieve.archive_sise=7", "key 'retrieve.archive_sise'; did you mean 'archive_size'"),
        ("retreive.archive_size=7", "unknown key 'retreive'; did you mean 'retrieve'"),
        ("retrieve.archive_size=0", "retrieve.archive_size: .*greater than or equal to 1; got 0"),
        ("faces.min_score=1.5", "faces.min_score: .*less than or equal to 1; got 1.5"),
        ("train.device=tpu", "train.device: .*'cpu' or 'cuda'; got 'tpu'"),
        ("archive_size=7", "not of the form section.key=value"),
        ("retrieve.archive_size", "not of the form section.key=value"),
    ],
)  # fmt: skip
def test_load_wrong_override_says_place_and_way_out(
    run_file: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load(run_file, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[run\n", "cannot be read as TOML"),
        (b"\xff\xfd", "cannot be read as TOML"),
        (b"\xff\xfe[", "cannot be read as TOML"),
        (b"\xff\xfe", "run: Field required"),
        (b"", "run: Field required"),
        (b"[run]\n", "run.out: Field required"),
    ],
)
def test_load_wrong_file_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Config.load(path)
    assert "broken.toml" in str(caught.value)


def test_load_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        Config.load(tmp_path / "none.toml")


def test_load_value_in_place_of_a_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('retrieve = 3\n[run]\nout = "x"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="retrieve"):
        Config.load(path)
    with pytest.raises(ConfigError, match="retrieve"):
        Config.load(path, ["retrieve.archive_size=3"])


def test_config_is_frozen(run_file: Path) -> None:
    config = Config.load(run_file)
    with pytest.raises(pydantic.ValidationError):
        config.retrieve.archive_size = 3


def test_tree_written_and_read_gives_the_same_config(run_file: Path) -> None:
    config = Config.load(run_file, ["faces.scales=[0.5]"])
    assert Config.of(config.tree()) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_run_file_loads_and_names_a_shipped_category_set(path: Path) -> None:
    config = Config.load(path)
    assert config.run.out.parts[0] == "runs"
    if config.categories.set:
        sets = RUNS.parent / "category_sets"
        assert (sets / f"{config.categories.set}.toml").is_file()


def test_shipped_run_files_are_the_documented_ones() -> None:
    names = {path.stem for path in SHIPPED}
    assert {
        "laion_imagenet_s_919",
        "laion_published_919",
        "template",
        "voc2012_from_imagenet",
    } <= names


def test_template_holds_every_key_at_its_default() -> None:
    import tomllib

    written = tomllib.loads((RUNS / "template.toml").read_text(encoding="utf-8"))
    defaults = Config.of({"run": {"out": "."}}).tree()
    assert {(s, k) for s in written for k in written[s]} == {
        (s, k) for s in defaults for k in defaults[s]
    }
    changed = {(s, k) for s in written for k in written[s] if written[s][k] != defaults[s][k]}
    assert changed == CHOSEN


def test_template_says_of_each_key_what_its_description_says() -> None:
    lines = (RUNS / "template.toml").read_text(encoding="utf-8").splitlines()
    comments = " ".join(" ".join(line.partition("#")[2].split()) for line in lines)
    for section, field in Config.model_fields.items():
        for key, inner in field.annotation.model_fields.items():
            assert inner.description, f"{section}.{key} has no description"
            if (section, key) not in {*CHOSEN, ("categories", "each")}:
                assert inner.description in " ".join(comments.split()), f"{section}.{key}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fetch.workers", "fetch.processes"),
        ("train.num_workers", "train.processes"),
        ("train.workers", "train.sample_processes"),
        ("experts.workers", "experts.sample_processes"),
    ],
)
def test_key_under_its_old_name_still_loads_and_a_line_says_so(
    old: str, new: str, run_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for config in (Config.load(run_file, [f"{old}=3"]), Config.of(tree_with(old, 3))):
        section, _, key = new.partition(".")
        assert getattr(getattr(config, section), key) == 3
        assert f"{old} is now called {new}" in caplog.text
        assert old not in to_toml(config)
    both = Config.load(run_file, [f"{old}=3", f"{new}=5"])
    assert getattr(getattr(both, section), key) == 5, "the new name counts"


def tree_with(key: str, value: object) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {"run": {"out": "x"}, section: {name: value}}


def test_seed_run_file_holds_the_numbers_of_the_paper() -> None:
    config = Config.load(RUNS / "laion_imagenet_s_919.toml")
    assert config.categories.set == "imagenet_s_919"
    assert config.retrieve.archive_size == 500
    assert config.retrieve.near_duplicate_cosine == 0.94
    assert config.embed.model == "open_clip:ViT-L-14"
    assert config.faces.enabled
    assert config.segmenter.name == "deeplabv3plus_resnet50"
    assert (config.augment.n_max, config.augment.crop) == (2, 384)
