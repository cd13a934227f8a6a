"""Evaluation: against metrics worked out apart, by name and not by position, at original size."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from namedmask import images
from namedmask.cli.app import main
from namedmask.config import Config, EvaluateConfig, SegmenterConfig
from namedmask.errors import ConfigError, InputError
from namedmask.evaluate import imagenet_s
from namedmask.evaluate.label_maps import read_label_map
from namedmask.evaluate.scorer import label_ids, shown_scenes
from namedmask.metrics import ConfusionMatrix
from namedmask.run.progress import SilentProgress
from namedmask.schema.columns import IGNORE
from namedmask.segmenter.checkpoint import build_segmenter, save_checkpoint
from namedmask.segmenter.predict import predict_labels
from namedmask.verbs.evaluate import evaluate_checkpoint
from tests.scores import evaluate

pytestmark = pytest.mark.numerical

COLORS = np.array([(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250)], np.uint8)
NAMES = ("red", "green", "blue")


class NearestColor(nn.Module):
    """A segmenter that knows its labels by their color; right unless the picture lies."""

    def __init__(self, colors: np.ndarray = COLORS) -> None:
        super().__init__()
        mean, std = torch.tensor(images.IMAGENET_MEAN), torch.tensor(images.IMAGENET_STD)
        centers = (torch.from_numpy(colors).float() / 255 - mean) / std
        self.centers = nn.Parameter(centers)
        self.sizes: list[tuple[int, int]] = []
        self.dropout = nn.Dropout(0.9)

    def forward(self, pictures: Tensor) -> Tensor:
        self.sizes.append((pictures.shape[2], pictures.shape[3]))
        distance = (pictures[:, None] - self.centers[None, :, :, None, None]).square().sum(2)
        return self.dropout(-distance)


@dataclass(frozen=True)
class Scenes:
    """A benchmark in memory; `lies` pixels of each picture show another label's color."""

    names: tuple[str, ...] = NAMES
    count: int = 15
    absent: str = "skip"
    name: str = "scenes"
    by_size: bool = False

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(index)
        height, width = int(rng.integers(20, 30)), int(rng.integers(20, 30))
        truth = rng.integers(0, len(self.names) + 1, (height, width)).astype(np.uint16)
        color = {"red": 1, "green": 2, "blue": 3}
        by_id = np.array([0, *(color[name] for name in self.names)])
        shown = by_id[truth]
        lies = rng.random(truth.shape) < 0.05 * index
        shown[lies] = rng.integers(0, 4, int(lies.sum()))
        truth[rng.random(truth.shape) < 0.1] = IGNORE
        return f"scene/{index}", COLORS[shown], truth


def expected_matrix(benchmark: Scenes) -> ConfusionMatrix:
    matrix = ConfusionMatrix(4)
    for index in range(len(benchmark)):
        _, image, truth = benchmark[index]
        right = label_ids(benchmark.names, NAMES)[truth]
        nearest = (image[..., None, :].astype(int) - COLORS).__abs__().sum(-1).argmin(-1)
        matrix.update(right, nearest)
    return matrix


def test_scores_equal_the_confusion_matrix_of_all_pixels() -> None:
    benchmark = Scenes()
    done: list[int] = []
    result = evaluate(NearestColor(), NAMES, benchmark, EvaluateConfig(), on_scenes=done.append)
    matrix = expected_matrix(benchmark)
    assert result["miou"] == pytest.approx(matrix.miou(), abs=1e-6)
    assert result["pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy(), abs=1e-6)
    assert list(result["iou"]) == ["background", *NAMES]
    np.testing.assert_allclose(list(result["iou"].values()), matrix.iou(), atol=1e-6)
    assert result["num_scenes"] == sum(done) == 15
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_scene_scores_are_those_of_each_scene_alone() -> None:
    benchmark = Scenes(count=4)
    result = evaluate(NearestColor(), NAMES, benchmark, EvaluateConfig())
    for index, scene in enumerate(result["scenes"]):
        alone = ConfusionMatrix(4)
        _, image, truth = benchmark[index]
        alone.update(truth, predict_labels(NearestColor(), image))
        assert scene["name"] == f"scene/{index}" and scene["index"] == index
        assert scene["miou"] == pytest.approx(alone.miou(), abs=1e-6)
    assert result["scenes"][0]["miou"] == 1.0


def test_labels_agree_by_name_not_by_position() -> None:
    straight = evaluate(NearestColor(), NAMES, Scenes(), EvaluateConfig())
    benchmark = Scenes(names=("blue", "red", "green"))
    turned = evaluate(NearestColor(), NAMES, benchmark, EvaluateConfig())
    assert list(turned["iou"]) == ["background", "blue", "red", "green"]
    assert turned["miou"] == pytest.approx(expected_matrix(benchmark).miou(), abs=1e-6)
    assert turned["miou"] > 0.4 and straight["miou"] > 0.4
    shuffled_model = NearestColor(COLORS[[0, 3, 1, 2]])
    again = evaluate(shuffled_model, ("blue", "red", "green"), Scenes(), EvaluateConfig())
    assert again["iou"] == straight["iou"]


def test_segmenter_with_more_labels_is_judged_on_the_benchmarks_only() -> None:
    benchmark = Scenes(names=("green", "red"))
    result = evaluate(NearestColor(), NAMES, benchmark, EvaluateConfig())
    matrix = expected_matrix(benchmark)
    assert list(result["iou"]) == ["background", "green", "red"]
    assert result["miou"] == pytest.approx(matrix.iou()[[0, 2, 1]].mean(), abs=1e-6)
    assert matrix.counts[:, 3].sum() > 0  # blue was predicted, and is wrong everywhere
    assert result["pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy(), abs=1e-6)


def test_benchmark_labels_that_the_segmenter_lacks_are_listed() -> None:
    with pytest.raises(InputError, match=r"segmenter lacks: green, blue\. It knows red, gray"):
        evaluate(NearestColor(COLORS[:3]), ("red", "gray"), Scenes(), EvaluateConfig())


def test_absent_label_follows_the_rule_of_the_benchmark() -> None:
    class Gray(Scenes):
        def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
            name, image, truth = super().__getitem__(index)
            keep = (truth != 3) & (image[..., 2] == 0)
            return name, np.where(keep[..., None], image, 0), np.where(keep, truth, 0)

    skipped = evaluate(NearestColor(), NAMES, Gray(count=3), EvaluateConfig())
    zeroed = evaluate(NearestColor(), NAMES, Gray(count=3, absent="zero"), EvaluateConfig())
    assert skipped["iou"]["blue"] is None and zeroed["iou"]["blue"] is None
    assert zeroed["miou"] == pytest.approx(skipped["miou"] * 3 / 4, abs=1e-5)


def test_imagenet_s_scores_are_the_means_of_its_protocol() -> None:
    benchmark = Scenes(by_size=True, absent="zero", count=40)  # more than one part
    result = evaluate(NearestColor(), NAMES, benchmark, EvaluateConfig())
    overlaps, measures = np.zeros((5, 3, 4), np.int64), []
    for index in range(len(benchmark)):
        _, image, truth = benchmark[index]
        predicted = predict_labels(NearestColor(), image)
        scene = ConfusionMatrix(4)
        scene.update(truth, predicted)
        overlaps[:4] += imagenet_s.size_overlaps(scene.counts)
        overlaps[4] += imagenet_s.boundary_overlap(truth, predicted, 4)
        measures.append(imagenet_s.f_measure(scene.counts))
    expected = imagenet_s.sum_scores(overlaps, range(4))
    assert result["f_measure"] == pytest.approx(np.mean(measures), abs=1e-5)
    assert result["image_accuracy"] == 1.0
    for key, score in expected.items():
        assert result[key] == (None if np.isnan(score) else pytest.approx(score, abs=1e-6))
    assert "f_measure" not in evaluate(NearestColor(), NAMES, Scenes(count=1), EvaluateConfig())


def test_export_holds_every_prediction_in_the_benchmarks_ids(tmp_path) -> None:
    benchmark = Scenes(names=("green", "red"), count=3, by_size=True)
    config = EvaluateConfig(export=str(tmp_path / "submission"))
    evaluate(NearestColor(), NAMES, benchmark, config)
    for index in range(3):
        name, image, _ = benchmark[index]
        predicted = predict_labels(NearestColor(), image)  # red 1, green 2, blue 3
        bgr = cv2.imread(str(tmp_path / "submission" / f"{name}.png"))
        ids = bgr[..., 2] + 256 * bgr[..., 1].astype(int)
        assert np.array_equal(ids, np.array([0, 2, 1, 0])[predicted])


def test_scene_without_a_counted_pixel_has_no_score() -> None:
    class Void(Scenes):
        def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
            name, image, truth = super().__getitem__(index)
            return name, image, np.full_like(truth, IGNORE)

    void = Void(count=2, absent="zero", by_size=True)
    result = evaluate(NearestColor(), NAMES, void, EvaluateConfig())
    assert result["boundary_miou"] is None and result["f_measure"] is None
    assert result["miou"] is None and result["pixel_accuracy"] is None
    assert [scene["miou"] for scene in result["scenes"]] == [None, None]


def test_predictions_of_best_and_worst_scenes_are_kept(tmp_path) -> None:
    benchmark = Scenes()
    out = tmp_path / "evaluation"
    result = evaluate(NearestColor(), NAMES, benchmark, EvaluateConfig(), out=out)
    kept = {scene["prediction"]: scene for scene in result["scenes"] if "prediction" in scene}
    assert len(kept) == 12 and set(kept) == {path.name for path in out.iterdir()}
    for name, scene in kept.items():
        _, image, truth = benchmark[scene["index"]]
        labels = read_label_map(out / name)
        assert labels.shape == truth.shape
        assert (labels == predict_labels(NearestColor(), image)).all()
    best, worst = shown_scenes(result["scenes"])
    assert best[0]["miou"] == 1.0 and worst[0]["miou"] == min(s["miou"] for s in result["scenes"])


@pytest.mark.parametrize(("count", "best", "worst"), [(0, 0, 0), (4, 4, 0), (8, 6, 2), (20, 6, 6)])
def test_no_scene_is_shown_twice(count, best, worst) -> None:
    scenes = [{"name": str(i), "index": i, "miou": i / 20} for i in range(count)]
    scenes.append({"name": "void", "index": count, "miou": None})
    shown_best, shown_worst = shown_scenes(scenes)
    assert (len(shown_best), len(shown_worst)) == (best, worst)
    names = [scene["name"] for scene in (*shown_best, *shown_worst)]
    assert len(set(names)) == len(names) and "void" not in names
    assert [scene["miou"] for scene in shown_worst] == sorted(s["miou"] for s in shown_worst)


def test_prediction_is_at_the_size_of_the_image_however_it_was_made() -> None:
    image = images.resize(np.array([[(250, 0, 0), (0, 0, 250)]], np.uint8), 60, 100, nearest=True)
    model = NearestColor().eval()
    whole, shrunk = predict_labels(model, image), predict_labels(model, image, max_side=50)
    assert model.sizes == [(60, 100), (30, 50)]
    assert whole.shape == shrunk.shape == (60, 100) and whole.dtype == np.uint16
    assert (whole[:, :50] == 1).all() and (whole[:, 50:] == 3).all()
    assert (whole == shrunk).mean() > 0.95
    predict_labels(model, image, max_side=100)
    assert model.sizes[-1] == (60, 100)


def test_missing_device_is_refused_instead_of_replaced() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA: asks what happens when it is missing")
    with pytest.raises(InputError, match=r"evaluate\.device is 'cuda'"):
        evaluate(NearestColor(), NAMES, Scenes(), EvaluateConfig(device="cuda"))


def test_label_ids_keep_background_and_ignore_and_bar_the_nameless() -> None:
    table = label_ids(("b", "a"), ("a", "x", "b"))
    assert table.shape == (65536,) and table.dtype == np.uint16
    assert table[[0, 1, 2, 3, IGNORE]].tolist() == [0, 3, 1, IGNORE, IGNORE]


def test_same_scores_twice_whatever_mode_the_model_came_in() -> None:
    one = evaluate(NearestColor().train(), NAMES, Scenes(count=3), EvaluateConfig())
    two = evaluate(NearestColor().eval(), NAMES, replace(Scenes(), count=3), EvaluateConfig())
    assert one == two


def test_checkpoint_alone_is_judged_on_a_folder(tmp_path) -> None:
    model = build_segmenter(SegmenterConfig(name="deeplabv3plus_tiny"), 3)
    save_checkpoint(tmp_path / "a.pt", model, name="deeplabv3plus_tiny", names=("red", "green"))
    for kind in ("images", "labels"):
        (tmp_path / "own" / "val" / kind).mkdir(parents=True)
    (tmp_path / "own" / "benchmark.toml").write_text('names = ["green", "red"]\n')
    picture, truth = COLORS[np.eye(24, 32, dtype=int)], np.eye(24, 32, dtype=np.uint8)
    (tmp_path / "own" / "val" / "images" / "x.png").write_bytes(images.encode_png(picture))
    (tmp_path / "own" / "val" / "labels" / "x.png").write_bytes(images.encode_png(truth))
    section = {"benchmark": "folder", "root": str(tmp_path / "own")}
    config = Config.of({"run": {"out": "."}, "evaluate": section})
    found = evaluate_checkpoint(tmp_path / "a.pt", config, SilentProgress())
    matrix = ConfusionMatrix(3)
    matrix.update(truth * 2, predict_labels(model, picture))
    assert found["pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy(), abs=1e-6)
    assert set(found["iou"]) == {"background", "green", "red"} and "scenes" not in found
    with pytest.raises(ConfigError, match="'benchmark' and 'root'"):
        evaluate_checkpoint(tmp_path / "a.pt", Config.of({"run": {"out": "."}}), SilentProgress())


def test_bare_weights_are_judged_by_the_names_of_benchmark_or_set(tmp_path, capsys) -> None:
    """A flat state dict, as the original releases its segmenters: no names, no network in it."""
    network = "segmenter.name=deeplabv3plus_tiny"
    model = build_segmenter(SegmenterConfig(name="deeplabv3plus_tiny"), 21)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    torch.save(build_segmenter(SegmenterConfig(name="deeplabv3plus_tiny"), 3).state_dict(),
               tmp_path / "other.pt")  # fmt: skip
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    picture = COLORS[np.eye(24, 32, dtype=int)]
    truth = np.where(np.eye(24, 32) > 0, 3, 0).astype(np.uint8)
    (base / "JPEGImages" / "x.jpg").write_bytes(images.encode_jpeg(picture))
    (base / "SegmentationClass" / "x.png").write_bytes(images.encode_png(truth))
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("x\n")
    asked = ["evaluate", str(tmp_path / "bare.pt"), "--benchmark", "voc2012", "--root",
             str(tmp_path), "--set", network, "--json"]  # fmt: skip
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    matrix = ConfusionMatrix(21)
    shown = images.decode((base / "JPEGImages" / "x.jpg").read_bytes())
    matrix.update(truth, predict_labels(model, shown))
    assert told["pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy(), abs=1e-6)
    assert told["miou"] == pytest.approx(matrix.miou(), abs=1e-6)
    assert main([*asked, "--set", "voc2012"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert main([*asked, "--set", "coco2017"]) == 2
    assert "last layer has 21 labels, background included; the 80 names" in capsys.readouterr().err
    asked[1] = str(tmp_path / "other.pt")
    assert main(asked) == 2
    assert "last layer has 3 labels, background included; the 20 names" in capsys.readouterr().err
