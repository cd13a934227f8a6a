"""What a verb needs is opened before its first row: one line, at once, nothing bound, as on Ray."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from namedmask.engine import PLAIN_LOOP
from namedmask.engine.on_ray import connect
from namedmask.engine.on_ray.ray_executor import RayExecutor
from namedmask.errors import InputError, NamedMaskError
from namedmask.run.progress import SilentProgress
from namedmask.run.verb_table import VERBS
from namedmask.segmenter.checkpoint import MINIWORLD_BACKBONE
from namedmask.verbs.ablate import ablate
from namedmask.verbs.preflight import PARTS
from tests.road import config_of, judged_on_disks
from tests.white_faces import write_detector

SILENT = SilentProgress()
MOST_S = 20.0

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PLUG_INS = {  # key: (verb, names that are wrong)
    "embed.model": ("curate", ("thumbnale", "open_clip:ViT-L-41")),
    "faces.detector": ("curate", ("scrfdd",)),
    "saliency.detector": ("curate", ("selfmaks",)),
    "segmenter.name": ("refine", ("deeplabv3plus_tyni",)),
    "evaluate.benchmark": ("evaluate", ("voc2021",)),
}
DOTTED = (
    "tests.toyz:embedder", "tests.toys:embedders", "tests.wrong_parts:nothing",
    "tests.wrong_parts:raises", "tests.wrong_parts:no_library", "tests.wrong_parts:no_module",
    "tests.wrong_parts:too_large", "tests.wrong_parts:other_arguments", "tests.wrong_parts:NUMBER",
)  # fmt: skip


def _weights(name: str) -> Path:
    return MINIWORLD_BACKBONE.with_name(name)


FILES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "embed.weights": ("curate", lambda folder: _weights("clip.safetensors"),
                      ("embed.model=open_clip:RN50",)),
    "faces.weights": ("curate", lambda folder: write_detector(folder / "scrfd.onnx"),
                      ("faces.detector=scrfd",)),
    "saliency.weights": ("curate", lambda folder: _weights("saliency.safetensors"),
                         ("saliency.detector=miniworld",)),
    "retrieve.safety_head": ("curate", lambda folder: _head(folder / "head.npz"), ()),
    "retrieve.violence_prompts": ("curate", lambda folder: _prompts(folder / "prompts.npy"), ()),
    "categories.set": ("curate", lambda folder: _set(folder / "set.toml"),
                       ("categories.names=[]",)),
    "segmenter.backbone_weights": ("refine", lambda folder: MINIWORLD_BACKBONE, ()),
    "train.start": ("train", lambda folder: MINIWORLD_BACKBONE, ()),
}  # fmt: skip
"""Verb, right file and further settings, by the key that names the file."""

DEVICES = {
    "embed": ("curate", ("embed.model=miniworld",)),
    "saliency": ("curate", ("saliency.detector=miniworld",)),
    "faces": ("curate", ("faces.detector=miniworld",)),
    "experts": ("refine", ()),
    "train": ("train", ()),
    "evaluate": ("evaluate", ()),
}


def _head(path: Path) -> Path:
    np.savez(path, np.ones((108, 1), np.float32), np.zeros(1, np.float32))
    return path


def _prompts(path: Path) -> Path:
    np.save(path, np.eye(2, 108, dtype=np.float32))
    return path


def _set(path: Path) -> Path:
    path.write_text('names = ["red", "green", "blue"]\n')
    return path


def _wrong_file(way: str, right: Path, folder: Path) -> str:
    """Return the value of a key that names a file in one of five wrong ways."""
    path = folder / f"wrong{right.suffix}"
    if way == "garbage":
        path.write_bytes(b"<html>not found</html>" * 20)
    elif way == "truncated":
        path.write_bytes(right.read_bytes()[: right.stat().st_size // 3])
    elif way == "folder":
        path.mkdir()
    elif way == "not fetched":
        return "selfmask"
    return str(path)


@pytest.fixture(scope="module")
def finished(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with curated, refined archives and a trained segmenter, not evaluated."""
    out = tmp_path_factory.mktemp("finished") / "run"
    config = config_of(source, out)
    for verb in ("curate", "refine", "train"):
        VERBS[verb].load()(config, SILENT, PLAIN_LOOP)
    return out


@pytest.fixture
def at(source: str, finished: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a config for a verb, in a run folder in which the verb has not begun."""

    def at(verb: str, *settings: str) -> Any:
        out = tmp_path / "run"
        if verb != "curate" and not out.exists():
            shutil.copytree(finished, out)
            record = json.loads((out / "run.json").read_text())
            names = list(VERBS)
            for name in names[names.index(verb) :]:
                record["verbs"].pop(name, None)
            (out / "run.json").write_text(json.dumps(record))
        config = judged_on_disks(config_of(source, out), tmp_path / "disks")
        return type(config).of(config.tree(), settings)

    return at


def failure_of(verb: str, config: Any, executor: Any) -> NamedMaskError:
    """Return the error of a verb, which comes at once, in one line, and binds nothing."""
    path, began = config.run.out / "run.json", time.monotonic()
    before, files = record_of(path), stored_in(config.run.out)
    with pytest.raises(NamedMaskError) as caught:
        VERBS[verb].load()(config, SILENT, executor)
    assert time.monotonic() - began < MOST_S
    assert "\n" not in str(caught.value)
    assert record_of(path) == before, "settings are bound"
    assert stored_in(config.run.out) == files, "rows were passed on"
    return caught.value


def record_of(path: Path) -> Any:
    return json.loads(path.read_text())["verbs"] if path.exists() else {}


def stored_in(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.glob("*/*"))


def mend(verb: str, config: Any) -> None:
    """Run a verb with the right settings in the folder in which the wrong ones failed."""
    assert "skipped" not in VERBS[verb].load()(config, SILENT, PLAIN_LOOP)


def slips() -> Iterator[Any]:
    for key, (verb, names) in PLUG_INS.items():
        for name in (*names, *DOTTED):
            yield pytest.param(verb, key, (f"{key}={name}",), id=f"{key}-{name}")
    for section, (verb, settings) in DEVICES.items():
        yield pytest.param(
            verb, f"{section}.device", (*settings, f"{section}.device=cuda"), id=f"{section}-cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        )  # fmt: skip
    for key, folder in (("fetch.file_root", "/no/such/folder"), ("fetch.file_root", "/dev/null"),
                        ("evaluate.root", "/no/such/folder"), ("evaluate.root", "/dev/null"),
                        ("evaluate.split", "tset"), ("evaluate.export", "/dev/null/x"),
                        ("evaluate.export", "/proc/x")):  # fmt: skip
        verb = "curate" if key.startswith("fetch") else "evaluate"
        yield pytest.param(verb, key, (f"{key}={folder}",), id=f"{key}-{folder}")
    for example in ("/no/such.jpg", "/dev/null", "/"):
        rules = f'categories.each={{red = {{examples = ["{example}"]}}}}'
        yield pytest.param("curate", "categories.each", (rules,), id=f"example-{example}")
    yield pytest.param("curate", "categories", ('categories.templates=["a"]',), id="template")


WAYS = ("missing", "garbage", "truncated", "folder", "not fetched")


@pytest.mark.parametrize(("verb", "key", "settings"), [*slips()])
def test_preflight_slip_is_told_in_one_line_and_binds_nothing(
    at: Callable[..., Any], verb: str, key: str, settings: tuple[str, ...]
) -> None:
    error = failure_of(verb, at(verb, *settings), PLAIN_LOOP)
    assert isinstance(error, InputError)
    named = (key, key.split(".")[-1], key.split(".")[0], "benchmark", "detector", "embedder")
    assert any(word in str(error) for word in named), error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", FILES)
def test_preflight_wrong_file_is_told_in_one_line_and_binds_nothing(
    at: Callable[..., Any], tmp_path: Path, key: str, way: str
) -> None:
    verb, make, settings = FILES[key]
    wrong = _wrong_file(way, make(tmp_path), tmp_path)
    error = failure_of(verb, at(verb, *settings, f"{key}={wrong}"), PLAIN_LOOP)
    assert isinstance(error, InputError)
    assert wrong in str(error)


@pytest.mark.parametrize("verb", ["curate", "refine", "train", "evaluate"])
def test_preflight_mended_run_file_runs_in_the_same_folder(
    at: Callable[..., Any], verb: str
) -> None:
    wrong = {
        "curate": "saliency.detector=selfmaks", "refine": "segmenter.backbone_weights=/no.pt",
        "train": "train.start=/no.pt", "evaluate": "evaluate.split=tset",
    }  # fmt: skip
    failure_of(verb, at(verb, wrong[verb]), PLAIN_LOOP)
    mend(verb, at(verb))


def test_preflight_of_weights_for_other_vectors_comes_before_embedding(
    at: Callable[..., Any], tmp_path: Path
) -> None:
    np.save(tmp_path / "wide.npy", np.eye(2, 512, dtype=np.float32))
    config = at("curate", f"retrieve.violence_prompts={tmp_path / 'wide.npy'}")
    assert "made for vectors 512 wide" in str(failure_of("curate", config, PLAIN_LOOP))


def test_preflight_of_ablate_looks_for_the_benchmark_before_it_trains(
    at: Callable[..., Any], source: str
) -> None:
    for settings in (("evaluate.root=/no/such/folder",), ("evaluate.split=tset",)):
        config, began = at("evaluate", *settings), time.monotonic()
        with pytest.raises(InputError):
            ablate(config, "experts", SILENT, PLAIN_LOOP, seeds=[0])
        assert time.monotonic() - began < MOST_S
        assert not list((config.run.out / "ablations").rglob("training.pt"))


def test_preflight_knows_the_parts_of_every_verb() -> None:
    for verb in VERBS.values():
        assert set(verb.opens) <= PARTS.keys()
        assert verb.opens or verb.parts, f"{verb.name} opens nothing"


@pytest.fixture(scope="module")
def executor(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    out = tmp_path_factory.mktemp("nowhere")
    with connect(config_of(source, out, "ray.num_cpus=6", "ray.object_store_mb=100")) as executor:
        yield executor


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("verb", "key", "settings"), [*slips()])
def test_on_ray_preflight_tells_a_slip_as_the_plain_loop(
    at: Callable[..., Any], executor: RayExecutor, verb: str, key: str, settings: tuple[str, ...]
) -> None:
    config = at(verb, *settings)
    expected = failure_of(verb, config, PLAIN_LOOP)
    found = failure_of(verb, config, executor)
    assert (str(found), found.exit_code) == (str(expected), expected.exit_code)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", FILES)
def test_on_ray_preflight_tells_a_wrong_file_as_the_plain_loop(
    at: Callable[..., Any], executor: RayExecutor, tmp_path: Path, key: str, way: str
) -> None:
    verb, make, settings = FILES[key]
    config = at(verb, *settings, f"{key}={_wrong_file(way, make(tmp_path), tmp_path)}")
    expected = failure_of(verb, config, PLAIN_LOOP)
    found = failure_of(verb, config, executor)
    assert (str(found), found.exit_code) == (str(expected), expected.exit_code)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_on_ray_part_whose_process_dies_is_the_failure_of_the_run(
    at: Callable[..., Any], executor: RayExecutor
) -> None:
    for key in ("embed.model", "faces.detector"):
        error = failure_of("curate", at("curate", f"{key}=tests.wrong_parts:dies"), executor)
        assert "died while it opened its models" in str(error)
    assert "skipped" not in VERBS["curate"].load()(at("curate"), SILENT, executor)
