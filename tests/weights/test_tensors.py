"""Every loader of weights, given what is missing, cut short, hostile or another network's."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch

import namedmask
from namedmask.config import BaselinesConfig, EmbedConfig, SaliencyConfig, SegmenterConfig
from namedmask.config.registry import resolve
from namedmask.embed.open_clip import EMBEDDERS
from namedmask.errors import CheckpointError
from namedmask.evaluate.reco import TimmEncoder
from namedmask.faces.retinaface import load_retinaface
from namedmask.retrieve.safety import load_safety_head
from namedmask.saliency.detectors import DETECTORS
from namedmask.segmenter.checkpoint import build_segmenter, load_checkpoint, starting_segmenter
from namedmask.verbs.inspect import inspect_path
from namedmask.weights.tensors import load_strict, read_tensors, read_tree

TINY = "deeplabv3plus_tiny"


def load_open_clip(path: Path) -> object:
    config = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 64,
            "heads": 1,
            "layers": 1,
        },
    }
    model = path.parent / "namedmask-test-checkpoints.json"
    model.write_text(json.dumps(config))
    open_clip.add_model_config(model)
    return resolve("embedder", "open_clip:", EMBEDDERS)(
        EmbedConfig(model=f"open_clip:{model.stem}", weights=str(path))
    )


LOADERS: dict[str, Callable[[Path], object]] = {
    "segmenter": load_checkpoint,
    "bare segmenter": lambda path: load_checkpoint(path, SegmenterConfig(name=TINY), ("a", "b")),
    "training start": lambda path: starting_segmenter(
        SegmenterConfig(name=TINY), ["a"], start=str(path)
    ),
    "backbone": lambda path: build_segmenter(
        SegmenterConfig(name=TINY, backbone_weights=str(path)), 2
    ),
    "selfmask": lambda path: DETECTORS["selfmask"](
        SaliencyConfig(detector="selfmask", weights=str(path))
    ),
    "miniworld saliency": lambda path: DETECTORS["miniworld"](SaliencyConfig(weights=str(path))),
    "tokencut": lambda path: DETECTORS["tokencut"](
        SaliencyConfig(detector="tokencut", weights=str(path))
    ),
    "reco encoder": lambda path: TimmEncoder(
        BaselinesConfig(encoder="timm:vit_tiny_patch16_224", encoder_weights=str(path))
    ),
    "retinaface": load_retinaface,
    "safety head": lambda path: load_safety_head(str(path)),
    "inspect": inspect_path,
    "open_clip": load_open_clip,
}


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("loader", LOADERS)
def test_loader_file_with_code_is_refused_and_the_code_not_run(tmp_path: Path, loader: str) -> None:
    path, marker = tmp_path / "hostile.pth", tmp_path / "was-run"
    for tree in ({"model": Hostile(marker)}, Hostile(marker), {"state_dict": [Hostile(marker)]}):
        torch.save(tree, path)
        with pytest.raises(CheckpointError, match=r"hostile\.pth") as error:
            LOADERS[loader](path)
        assert "weights_only" not in str(error.value)
        assert not marker.exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_loader_file_cut_short_is_refused(tmp_path: Path, loader: str) -> None:
    path = tmp_path / "cut.pth"
    torch.save({f"layer{i}.weight": torch.ones(50, 50) for i in range(5)}, path)
    data = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            LOADERS[loader](path)


@pytest.mark.parametrize("loader", sorted(LOADERS.keys() - {"inspect"}))
def test_loader_file_of_another_network_is_refused(tmp_path: Path, loader: str) -> None:
    path = tmp_path / "other.pth"
    for tree in ({"conv.bias": torch.ones(3)}, {}, {"a": "text"}, {"model": {"b": torch.ones(1)}}):
        torch.save(tree, path)
        with pytest.raises(CheckpointError, match=r"other\.pth"):
            LOADERS[loader](path)


@pytest.mark.parametrize("loader", sorted(LOADERS.keys() - {"inspect", "open_clip"}))
def test_loader_absent_file_is_named(tmp_path: Path, loader: str) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth.*does not exist"):
        LOADERS[loader](tmp_path / "absent.pth")


@pytest.mark.parametrize("loader", ["backbone", "selfmask", "retinaface", "miniworld saliency"])
def test_loader_safetensors_cut_short_is_refused(tmp_path: Path, loader: str) -> None:
    path = tmp_path / "cut.safetensors"
    safetensors.torch.save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        LOADERS[loader](path)


@pytest.mark.filterwarnings("ignore")  # torch's own, about TorchScript
def test_read_tree_of_a_program_is_refused(tmp_path: Path) -> None:
    """OpenAI's own CLIP files are such."""
    path = tmp_path / "program.pt"
    linear = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(linear, torch.ones(1, 2)), path)
    with pytest.raises(CheckpointError, match="holds code, which is never run"):
        read_tree(path)


def test_load_strict_tells_everything_that_does_not_fit() -> None:
    linear = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError) as error:
        load_strict(linear, {"weight": torch.ones(2, 2), "extra": 1}, "x.pt", "a line")
    message = str(error.value)
    assert "x.pt: does not fit a line: 1 entries missing (bias); 1 unexpected (extra); " in message
    assert "1 of another shape (weight (2, 2), expected (2, 3))" in message
    half = {"weight": torch.full((2, 3), 0.5, dtype=torch.float16), "bias": torch.zeros(2)}
    load_strict(linear, half, "x.pt", "a line")
    assert linear.weight.dtype == torch.float32 and (linear.weight == 0.5).all()


def test_read_tensors_gives_the_same_of_both_containers(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    torch.save(state, tmp_path / "a.pth")
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


def calls_of(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == name]


def test_package_loads_weights_in_one_place_and_never_runs_code_from_them() -> None:
    """What is unpickled elsewhere are messages between a run's own processes."""
    package = Path(namedmask.__file__).parent
    for path in package.rglob("*.py"):
        tree, place = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(package)
        for call in calls_of(tree, "torch.load"):
            assert {k.arg: ast.unparse(k.value) for k in call.keywords}["weights_only"] == "True"
            assert str(place) == "weights/tensors.py", f"{place}: use weights.tensors.read_tree"
        for call in calls_of(tree, "np.load"):
            words = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert words.get("allow_pickle", "False") == "False", f"{place}: np.load may unpickle"
        unpickles = calls_of(tree, "pickle.load") + calls_of(tree, "pickle.loads")
        assert not unpickles or place.parts[:2] == ("engine", "on_ray"), f"{place} unpickles"
        assert not calls_of(tree, "torch.jit.load") + calls_of(tree, "torch.hub.load"), place
