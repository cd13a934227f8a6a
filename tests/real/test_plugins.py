"""Real weights on real photos: the SCRFD face detector, CSNet and SqueezeNet as plug-ins."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask.categories import PROMPT_TEMPLATES, imagenet_names, load_category_set
from namedmask.config import EmbedConfig, FacesConfig, SaliencyConfig
from namedmask.config.registry import resolve
from namedmask.embed.stage import Embed
from namedmask.embed.text import text_features
from namedmask.errors import CheckpointError, InputError
from namedmask.faces.stage import Faces, find_faces
from namedmask.images.codec import decode, decode_gray, encode_png

ROOT = Path(__file__).parents[2]

FACE_COUNTS = {
    "astronaut.png": 1, "zidane.jpg": 2, "hpc203_s_l.jpg": 2, "inspire_bulk_image_T1.jpeg": 1,
    "brick.png": 0, "chelsea.png": 0, "coffee.png": 0, "coins.png": 0, "grass.png": 0,
    "rocket.jpg": 0,
}  # fmt: skip


@pytest.fixture
def plugin_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PYTHONPATH does for a user's plug-in."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def faces(real_data: Path) -> Faces:
    weights = real_data / "weights" / "scrfd_2.5g_kps.onnx"
    return Faces(FacesConfig(detector="scrfd", weights=str(weights)))


def table_of(images: list[bytes]) -> pa.Table:
    return pa.table({"image": pa.array(images, pa.binary()), "status": ["ok"] * len(images)})


def test_real_scrfd_counts_the_faces_of_known_photos(real_data: Path, faces: Faces) -> None:
    done = faces(table_of([(real_data / "faces" / name).read_bytes() for name in FACE_COUNTS]))
    assert done["num_faces"].to_pylist() == list(FACE_COUNTS.values())
    kept = [image is not None for image in done["image"].to_pylist()]
    assert kept == [count == 0 for count in FACE_COUNTS.values()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_scrfd_drops_coco_photos_with_faces_and_keeps_the_others(
    real_data: Path, faces: Faces
) -> None:
    with (real_data / "coco" / "index.csv").open(encoding="utf-8") as file:
        labels = {row["file"]: row["face_label"] for row in csv.DictReader(file)}
    dropped = {"face": 0, "noface": 0}
    crops = []
    for name, label in labels.items():
        if not label:
            continue
        image = decode((real_data / "coco" / "photos" / name).read_bytes())
        found = find_faces(faces.detector, image, (1.0, 0.5), 0.4)
        dropped[label] += len(found) > 0
        if label == "face" and len(found):
            crops += [crop(image, found[0], margin) for margin in (0.0, 0.1)]
    assert dropped["face"] == 21
    assert dropped["noface"] <= 2
    statuses = faces(table_of([encode_png(image) for image in crops]))["status"].to_pylist()
    assert statuses == ["has_face"] * 42


def crop(image: np.ndarray, box: np.ndarray, margin: float) -> np.ndarray:
    """Return the pixels of a box with this share of its sides around it."""
    x0, y0, x1, y1 = box[:4]
    across, down = margin * (x1 - x0), margin * (y1 - y0)
    rows = slice(max(0, int(y0 - down)), int(np.ceil(y1 + down)))
    columns = slice(max(0, int(x0 - across)), int(np.ceil(x1 + across)))
    return np.ascontiguousarray(image[rows, columns])


def test_real_retinaface_priors_find_the_faces_that_scrfd_finds(
    real_data: Path, faces: Faces
) -> None:
    weights = real_data / "weights" / "retinaface_mobilenet025_priors.onnx"
    priors = Faces(FacesConfig(detector="retinaface_priors", weights=str(weights)))
    for name, count in FACE_COUNTS.items():
        image = decode((real_data / "faces" / name).read_bytes())
        ours, theirs = (
            find_faces(stage.detector, image, (1.0, 0.5), 0.4) for stage in (priors, faces)
        )
        assert len(ours) == len(theirs) == count, name
        for box in theirs:  # in place of each of theirs, one of ours
            apart = np.abs(ours[:, :4] - box[:4]).max(axis=1)
            assert apart.min() < 0.1 * (box[3] - box[1]), name


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("scrfd", "retinaface_mobilenet025_priors.onnx"),
        ("retinaface_mxnet", "retinaface_mobilenet025_priors.onnx"),
        ("retinaface_priors", "scrfd_2.5g_kps.onnx"),
        ("retinaface_mxnet", "scrfd_2.5g_kps.onnx"),  # nine outputs as well, of another meaning
        ("retinaface_priors", "csnet_saliency_224.onnx"),
    ],
)
def test_real_file_of_another_form_is_refused(real_data: Path, form: str, file: str) -> None:
    with pytest.raises(CheckpointError, match=r"not in the (SCRFD )?form"):
        Faces(FacesConfig(detector=form, weights=str(real_data / "weights" / file)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("plugin_path")
def test_csnet_plugin_finds_the_salient_objects_of_ecssd(real_data: Path) -> None:
    factory = resolve("saliency detector", "tests.real.csnet:csnet", {})
    weights = real_data / "weights" / "csnet_saliency_224.onnx"
    detector = factory(SaliencyConfig(weights=str(weights)))
    overlaps = []
    for path in sorted((real_data / "ecssd" / "photos").iterdir()):
        (saliency,) = detector.saliency([decode(path.read_bytes())])
        (mask_path,) = (real_data / "ecssd" / "masks").glob(f"{path.stem}.*")
        truth, mask = decode_gray(mask_path.read_bytes()) > 127, saliency > 0.5
        assert saliency.shape == truth.shape
        assert saliency.dtype == np.float32
        overlaps.append((mask & truth).sum() / max(1, (mask | truth).sum()))
    assert len(overlaps) == 100
    assert np.mean(overlaps) >= 0.83


@pytest.mark.usefixtures("plugin_path")
def test_squeezenet_plugin_retrieves_imagenet_photos_by_name(real_data: Path) -> None:
    weights = real_data / "weights" / "squeezenet1_1.pth"
    stage = Embed(
        EmbedConfig(model="tests.real.squeezenet:squeezenet", weights=str(weights), batch_size=10)
    )
    paths = sorted((real_data / "imagenet50").iterdir())  # one a class, in the set's order
    done = stage(table_of([path.read_bytes() for path in paths]))
    vectors = np.array(done["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    queries = load_category_set("imagenet_s_50").queries
    features = text_features(stage.embedder, queries, PROMPT_TEMPLATES)
    assert (features.argmax(axis=1) == [imagenet_names().index(query) for query in queries]).all()
    best = (vectors @ features.T).argmax(axis=1)
    assert (best == np.arange(50)).sum() >= 31


@pytest.mark.usefixtures("plugin_path")
def test_squeezenet_plugin_refuses_a_text_without_an_imagenet_name(real_data: Path) -> None:
    factory = resolve("embedder", "tests.real.squeezenet:squeezenet", {})
    embedder = factory(EmbedConfig(weights=str(real_data / "weights" / "squeezenet1_1.pth")))
    with pytest.raises(InputError, match="no ImageNet name"):
        embedder.embed_texts(["a photo of nothing at all"])
