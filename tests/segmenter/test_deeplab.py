"""The networks against the original's numbers, and the files that may fill them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from namedmask import schema
from namedmask.categories import load_category_set
from namedmask.config import SegmenterConfig
from namedmask.errors import CheckpointError, ConfigError, NamedMaskError
from namedmask.images.codec import to_tensor
from namedmask.segmenter.checkpoint import (
    build_segmenter,
    load_checkpoint,
    save_checkpoint,
    starting_segmenter,
)
from namedmask.segmenter.deeplab import SEGMENTERS, deeplabv3plus_resnet50, deeplabv3plus_tiny
from namedmask.weights.tensors import load_strict, read_tree, write_tree
from tests.golden import golden_arrays, golden_keys, golden_weights

pytestmark = pytest.mark.numerical

TINY = SegmenterConfig(name="deeplabv3plus_tiny")
NAMES = ("crane bird", "tower crane", "horse")


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return deeplabv3plus_resnet50(21)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, build_segmenter(TINY, 4), name=TINY.name, names=NAMES, step=7)
    return path


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(images)


def test_resnet50_state_dict_has_the_released_layout(resnet50: nn.Module) -> None:
    layout = {key: tuple(value.shape) for key, value in resnet50.state_dict().items()}
    assert layout == golden_keys("deeplabv3plus_resnet50")


@pytest.mark.parametrize("num_labels", [2, 21])
def test_resnet_parameters_follow_the_published_formula(num_labels: int) -> None:
    with torch.device("meta"):
        model = deeplabv3plus_resnet50(num_labels)
        deeper = SEGMENTERS["deeplabv3plus_resnet101"](num_labels)
    assert sum(p.numel() for p in model.parameters()) == 26_608_976 + 257 * num_labels
    more = sum(p.numel() for p in deeper.parameters()) - 26_608_976 - 257 * num_labels
    assert more == 42_500_160 - 23_508_032  # torchvision's two networks without their classifiers


def test_resnet50_golden_picture_gives_the_original_logits(resnet50: nn.Module) -> None:
    golden = golden_arrays("deeplabv3plus_resnet50")
    golden_weights(resnet50)
    logits = logits_of(resnet50, to_tensor([golden["image"]]))[0].numpy()
    assert logits.shape == (21, 96, 128)
    error = np.linalg.norm(logits[:, ::4, ::4] - golden["logits"])
    assert error / np.linalg.norm(golden["logits"]) < 1e-4
    assert logits.mean() == pytest.approx(float(golden["mean"]), rel=1e-4)
    assert logits.std() == pytest.approx(float(golden["std"]), rel=1e-4)


def test_resnet50_norms_and_dropout_are_the_methods(resnet50: nn.Module) -> None:
    def momenta(part: nn.Module) -> set[float | None]:
        return {m.momentum for m in part.modules() if isinstance(m, nn.BatchNorm2d)}

    assert momenta(resnet50.backbone) == {0.01}
    assert momenta(resnet50.classifier) == {0.1}
    assert {m.p for m in resnet50.modules() if isinstance(m, nn.Dropout)} == {0.1}


def test_tiny_has_less_than_a_million_parameters() -> None:
    model = deeplabv3plus_tiny(15)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenter_any_size_gives_logits_at_the_size_of_the_picture(name: str) -> None:
    model = SEGMENTERS[name](5)
    for height, width in ((1, 1), (10, 33), (64, 47)):
        logits = logits_of(model, torch.zeros(2, 3, height, width))
        assert logits.shape == (2, 5, height, width)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenter_backbone_tells_its_channels(name: str) -> None:
    backbone = SEGMENTERS[name](2).backbone
    features = backbone(torch.zeros(2, 3, 64, 96))
    assert features["low"].shape == (2, backbone.low_channels, 16, 24)
    assert features["out"].shape == (2, backbone.out_channels, 8, 12)


def test_build_same_seed_gives_the_same_weights_and_leaves_torch_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (build_segmenter(TINY, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    key = "classifier.classifier.3.weight"
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_build_backbone_file_fills_the_backbone(tmp_path: Path, suffix: str) -> None:
    state = build_segmenter(TINY, 2, seed=5).backbone.state_dict()
    path = tmp_path / f"backbone{suffix}"
    write = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    write(half, path)
    model = build_segmenter(TINY.model_copy(update={"backbone_weights": str(path)}), 4)
    for key, value in model.backbone.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("depth", [50, 101])
def test_build_backbone_file_in_torchvisions_layout_fits(tmp_path: Path, depth: int) -> None:
    """DINO releases its ResNet-50 so: torchvision's names, no classifier."""
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")()
    del theirs.fc
    made = {key: torch.full(v.shape, 0.5, dtype=v.dtype) for key, v in theirs.state_dict().items()}
    path = tmp_path / f"dino_resnet{depth}_pretrain.pth"
    torch.save(made, path)
    name = f"deeplabv3plus_resnet{depth}"
    model = build_segmenter(SegmenterConfig(name=name, backbone_weights=str(path)), 2)
    assert {key: v.shape for key, v in model.backbone.state_dict().items()} == {
        key: v.shape for key, v in made.items()
    }
    assert all((v == v.new_tensor(0.5)).all() for v in model.backbone.state_dict().values())


def test_build_backbone_with_a_classifier_names_the_unexpected_entries(tmp_path: Path) -> None:
    state = build_segmenter(TINY, 2).backbone.state_dict()
    del state["trunk.conv1.weight"]
    path = tmp_path / "backbone.pth"
    torch.save({**state, "fc.weight": torch.zeros(3)}, path)
    config = TINY.model_copy(update={"backbone_weights": str(path)})
    with pytest.raises(
        CheckpointError, match=r"1 entries missing \(trunk\.conv1\.weight\)"
    ) as error:
        build_segmenter(config, 4)
    assert "1 unexpected (fc.weight)" in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors"])
def test_build_absent_backbone_file_says_so(tmp_path: Path, name: str) -> None:
    config = TINY.model_copy(update={"backbone_weights": str(tmp_path / name)})
    with pytest.raises(CheckpointError, match="does not exist"):
        build_segmenter(config, 4)


def test_build_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'deeplabv3plus_tiny'"):
        build_segmenter(SegmenterConfig(name="deeplabv3plus_tny"), 4)


def test_checkpoint_round_trip_gives_the_same_logits(tmp_path: Path) -> None:
    model = build_segmenter(TINY, 4, seed=3)
    path = tmp_path / "new" / "checkpoint.pt"
    save_checkpoint(path, model, name=TINY.name, names=NAMES, step=7, extra={"miou": 0.5})
    loaded, names = load_checkpoint(path)
    images = torch.randn(2, 3, 32, 40)
    assert names == NAMES
    assert not loaded.training
    assert torch.equal(logits_of(loaded, images), logits_of(model, images))
    tree = read_tree(path)
    assert (tree["step"], tree["extra"]) == (7, {"miou": 0.5})
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_wrong_label_count_is_refused(tiny_file: Path) -> None:
    write_tree(tiny_file, {**read_tree(tiny_file), "names": ["horse"]})
    with pytest.raises(CheckpointError, match=r"classifier\.classifier\.3\.weight \(4, 64, 1, 1\)"):
        load_checkpoint(tiny_file)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_checkpoint_truncated_is_refused(tiny_file: Path, share: float) -> None:
    data = tiny_file.read_bytes()
    tiny_file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        load_checkpoint(tiny_file)


def test_checkpoint_garbled_is_refused_or_read(tiny_file: Path) -> None:
    data, rng = tiny_file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(30):
        garbled = bytearray(data)
        for place in rng.integers(min(len(data), 5000), size=20):
            garbled[place] = rng.integers(256)
        tiny_file.write_bytes(garbled)
        try:
            load_checkpoint(tiny_file)
        except CheckpointError:
            refused += 1
    assert refused > 10


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_checkpoint_with_code_is_refused_and_the_code_not_run(
    tmp_path: Path, container: str
) -> None:
    path, marker = tmp_path / "hostile.pt", tmp_path / "was-run"
    if container == "torch":
        torch.save({"model": Hostile(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Hostile(marker)}, protocol=2))
    with pytest.raises(CheckpointError, match="never run") as error:
        load_checkpoint(path)
    assert "weights_only" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_checkpoint_bare_weights_load_with_the_names_told(tmp_path: Path, suffix: str) -> None:
    model, path = build_segmenter(TINY, 4, seed=3), tmp_path / f"bare{suffix}"
    write = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    write(model.state_dict(), path)
    loaded, names = load_checkpoint(path, TINY, NAMES)
    images = torch.randn(1, 3, 32, 40)
    assert names == NAMES
    assert not loaded.training
    assert torch.equal(logits_of(loaded, images), logits_of(model, images))


def test_checkpoint_bare_weights_without_a_config_are_the_methods_network(
    resnet50: nn.Module, tmp_path: Path
) -> None:
    path, names = tmp_path / "namedmask_voc2012.pt", load_category_set("voc2012").names
    torch.save(resnet50.state_dict(), path)
    loaded, found = load_checkpoint(path, names=names)
    assert found == names
    assert all(
        torch.equal(value, loaded.state_dict()[key]) for key, value in resnet50.state_dict().items()
    )


def test_checkpoint_bare_weights_with_other_names_or_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.pt"
    torch.save(build_segmenter(TINY, 4).state_dict(), path)
    for names, config, message in (
        ((), TINY, "bare weights of 4 labels, background included, without their names"),
        (NAMES[:2], TINY, "last layer has 4 labels.* the 2 names given and the background are 3"),
        (NAMES, None, "does not fit deeplabv3plus_resnet50 with 4 labels"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            load_checkpoint(path, config, names)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": schema.FORMAT_VERSION + 1}, "Upgrade"),
        ({"format_version": "1"}, "format_version"),
        ({"model": [1]}, "format_version and model"),
        ({"model": {"a": "text"}}, "entries missing"),
        ({"segmenter": None}, "name of a segmenter"),
        ({"segmenter": "os:system"}, "plug-in"),
        ({"names": []}, "label names"),
        ({"names": ["a", "a", "b"]}, "label names"),
        ({"names": ["a", 3, "b"]}, "label names"),
    ],
)
def test_checkpoint_odd_entries_are_refused(
    tiny_file: Path, change: dict[str, object], message: str
) -> None:
    write_tree(tiny_file, {**read_tree(tiny_file), **change})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tiny_file)


def test_checkpoint_of_a_plugin_loads_when_the_config_names_it(tiny_file: Path) -> None:
    name = "namedmask.segmenter.deeplab:deeplabv3plus_tiny"
    write_tree(tiny_file, {**read_tree(tiny_file), "segmenter": name})
    with pytest.raises(CheckpointError, match="plug-in"):
        load_checkpoint(tiny_file, TINY)
    assert load_checkpoint(tiny_file, SegmenterConfig(name=name))[1] == NAMES


def test_save_that_fails_leaves_the_old_checkpoint(tiny_file: Path) -> None:
    before = tiny_file.read_bytes()
    model = build_segmenter(TINY, 4, seed=9)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(tiny_file, model, name=TINY.name, names=NAMES, extra={"f": lambda: 0})
    assert tiny_file.read_bytes() == before
    assert list(tiny_file.parent.iterdir()) == [tiny_file]


def test_save_where_no_folder_can_be_is_a_failed_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NamedMaskError, match=r"choose another run\.out"):
        save_checkpoint(tmp_path / "file" / "a.pt", nn.Identity(), name="x", names=NAMES)


def test_load_strict_released_weights_fit_the_network(resnet50: nn.Module) -> None:
    with torch.device("meta"):
        other = deeplabv3plus_resnet50(15)
    load_strict(resnet50, resnet50.state_dict(), "released.pt", "deeplabv3plus_resnet50")
    with pytest.raises(CheckpointError, match=r"2 of another shape .* expected \(21, 256, 1, 1\)"):
        load_strict(resnet50, other.state_dict(), "released.pt", "deeplabv3plus_resnet50")


def test_starting_segmenter_takes_labels_over_by_name_whatever_their_place(tmp_path: Path) -> None:
    config = SegmenterConfig(name="deeplabv3plus_tiny")
    old = build_segmenter(config, 4, seed=1)
    path = tmp_path / "old.pt"
    save_checkpoint(path, old, name=config.name, names=["mug", "crane", "gull"])
    new = starting_segmenter(config, ["gull", "horse", "mug"], seed=2, start=str(path))
    image = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        was, now = old.eval()(image), new.eval()(image)
    assert torch.equal(now[:, [0, 1, 3]], was[:, [0, 3, 1]])
    fresh = build_segmenter(config, 4, seed=2).state_dict()
    key = next(key for key, value in reversed(fresh.items()) if value.ndim == 4)
    assert torch.equal(new.state_dict()[key][2], fresh[key][2])


def test_starting_segmenter_of_another_network_is_refused(tmp_path: Path) -> None:
    config = SegmenterConfig(name="deeplabv3plus_tiny")
    path = tmp_path / "old.pt"
    save_checkpoint(path, build_segmenter(config, 2), name=config.name, names=["mug"])
    with pytest.raises(CheckpointError, match=r"train\.start: .*old\.pt holds another network"):
        starting_segmenter(SegmenterConfig(), ["mug"], start=str(path))
