"""Images and names in one space: a real open_clip model with random weights, made per session."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from namedmask.config import EmbedConfig
from namedmask.embed.open_clip import EMBEDDERS, OpenClip, load_clip_folder
from namedmask.embed.stage import Embed
from namedmask.embed.text import text_features
from namedmask.errors import CheckpointError, ConfigError, InputError, SchemaError
from namedmask.images.codec import decode, decode_coarse, encode_jpeg, encode_png, resize
from tests import rounding

pytestmark = pytest.mark.numerical

CONTEXT = 16
SIDE = 32

CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 512 + 3 + 2, "width": 32, "heads": 2,
                 "layers": 1},
}  # fmt: skip


def write_clip_folder(folder: Path) -> Path:
    """Write a tiny CLIP as the package ships one: config, merges, weights in half precision."""
    merges = gzip.compress(b"#version\nc r\ncr a\nn e</w>")
    (folder / "bpe.txt.gz").write_bytes(merges)
    (folder / "clip.json").write_text(json.dumps(CLIP), encoding="utf-8")
    torch.manual_seed(0)
    weights = {k: v.half() for k, v in open_clip.CLIP(**CLIP).state_dict().items()}
    save_file(weights, folder / "clip.safetensors")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (32, 32), (90, 35), (8, 50), (64, 64), (33, 47), (50, 50)]
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def stage_of(clip_folder: Path, batch_size: int = 4) -> Embed:
    return Embed(EmbedConfig(weights=str(clip_folder), batch_size=batch_size))


def table_of(images: list[bytes | None], statuses: list[str] | None = None) -> pa.Table:
    columns = {
        "sample_id": pa.array([f"{n:020x}" for n in range(len(images))]),
        "image": pa.array(images, pa.binary()),
        "status": pa.array(statuses or ["ok"] * len(images), pa.string()),
    }
    return pa.table(columns)


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table["embedding"].to_pylist(), np.float32)


def test_embed_of_a_row_is_the_same_bits_in_any_company(
    clip_folder: Path, photos: list[np.ndarray]
) -> None:
    stage = stage_of(clip_folder)
    encoded = [encode_png(photo) for photo in photos]
    together = vectors_of(stage(table_of(encoded)))
    order = [5, 2, 6, 0, 3, 1, 4]
    shuffled = vectors_of(stage(table_of([encoded[n] for n in order])))
    np.testing.assert_array_equal(shuffled, together[order])
    for row, item in enumerate(encoded):
        np.testing.assert_array_equal(vectors_of(stage(table_of([item])))[0], together[row])
    assert len(np.unique(together, axis=0)) == len(photos)
    np.testing.assert_allclose(
        np.linalg.norm(together, axis=1), 1, atol=rounding.of_dot_product(together.shape[1])
    )


def test_embed_prepares_images_as_the_model_was_trained(
    clip_folder: Path, photos: list[np.ndarray]
) -> None:
    embedder = load_clip_folder(clip_folder, torch.device("cpu"))
    small = Image.fromarray(photos[0]).resize((48, 32), Image.Resampling.BICUBIC)
    pixels = np.asarray(small.crop((8, 0, 40, 32)), np.float32) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    blob = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]
    config = json.loads((clip_folder / "clip.json").read_text())
    model = open_clip.CLIP(**config)
    open_clip.load_checkpoint(model, str(clip_folder / "clip.safetensors"))
    expected = model.eval().encode_image(blob, normalize=True).detach().numpy()
    # one level of 256 in a few pixels: torch rounds a resizing otherwise than Pillow
    np.testing.assert_allclose(embedder.embed_images(photos[:1]), expected, atol=3e-4)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [SIDE, (SIDE, 24)])
def test_embed_decode_of_a_lossless_file_is_what_open_clip_makes_of_it(
    photos: list[np.ndarray], mode: str, size: int | tuple[int, int]
) -> None:
    config = CLIP | {"vision_cfg": CLIP["vision_cfg"] | {"image_size": size}}
    model = open_clip.CLIP(**config)
    wanted = {"size": size, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1),
              "resize_mode": mode, "interpolation": "bilinear"}  # fmt: skip
    open_clip.model.set_model_preprocess_cfg(model, wanted)
    own = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), False
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
    model.encode_text = lambda tokens: torch.ones(len(tokens), 24)
    embedder = OpenClip(model, tokenizer, torch.device("cpu"))
    expected = torch.stack([own(Image.fromarray(photo)) for photo in photos])
    decoded = np.stack([embedder.decode(encode_png(photo)) for photo in photos])
    assert decoded.dtype == np.uint8
    levels = torch.tensor(wanted["std"]).view(3, 1, 1) * 255
    apart = (embedder._normalized(torch.from_numpy(decoded)) - expected) * levels
    assert apart.abs().max() < 2.01, "torch's kernel rounds otherwise than Pillow, no more"
    assert (apart.abs() > 0.5).float().mean() < 0.05
    if mode == "longest":  # its resizing is Pillow's in any case
        assert apart.abs().max() == 0
    np.testing.assert_array_equal(
        embedder.embed_images(list(decoded)), embedder.embed_images(photos)
    )


def test_embed_of_a_large_jpeg_stays_close_to_open_clips(clip_folder: Path) -> None:
    stage = stage_of(clip_folder)
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    data = encode_jpeg(resize(coarse, 300, 400))
    assert decode_coarse(data, 2 * SIDE).shape == (75, 100, 3)
    (vector,) = vectors_of(stage(table_of([data])))
    (full,) = stage.embedder.embed_images([decode(data)])
    assert 0.999 < vector @ full < 1


@pytest.mark.parametrize("shape", [(4, 202), (202, 4), (1, 60_000)])
def test_embed_of_a_very_thin_image_is_its_middle_and_makes_no_large_one(
    clip_folder: Path, shape: tuple[int, int]
) -> None:
    embedder = load_clip_folder(clip_folder, torch.device("cpu"))
    whole = open_clip.image_transform(SIDE, is_train=False).transforms[:2]
    seen: list[tuple[int, int]] = []

    def noted(picture: torch.Tensor) -> torch.Tensor:
        seen.append(picture.shape[1:])
        return picture

    embedder._fit = [step for one in embedder._fit for step in (one, noted)]
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = embedder._fitted(image)
    assert max(map(max, seen)) <= 18 * SIDE
    if max(shape) < 1000:
        expected = Image.fromarray(image)
        for step in whole:
            expected = step(expected)
        np.testing.assert_allclose(found, np.asarray(expected).astype(int), atol=2)


def test_embed_in_bf16_stays_close_to_float32(clip_folder: Path, photos: list[np.ndarray]) -> None:
    single, half = (
        Embed(EmbedConfig(weights=str(clip_folder), precision=precision)).embedder
        for precision in ("float32", "bf16")
    )
    for one, other in (
        (single.embed_images(photos), half.embed_images(photos)),
        (single.embed_texts(["a crane"]), half.embed_texts(["a crane"])),
    ):
        cosines = (one * other).sum(axis=1)
        assert (cosines > 0.9999).all() and (cosines < 0.9999999).any()
        np.testing.assert_allclose(
            np.linalg.norm(other, axis=1), 1, atol=rounding.of_dot_product(other.shape[1])
        )


def test_in_bf16_on_a_cpu_the_blocks_of_a_vision_transformer_add_in_float32(
    clip_folder: Path, photos: list[np.ndarray]
) -> None:
    embedder = load_clip_folder(clip_folder, torch.device("cpu"), "bf16")
    sums, products = [], []
    first = embedder.model.visual.transformer.resblocks[0]
    first.register_forward_hook(lambda module, given, result: sums.extend([given[0], result]))
    first.mlp.register_forward_hook(lambda module, given, result: products.append(result))
    embedder.embed_images(photos)
    assert {one.dtype for one in sums} == {torch.float32}
    assert {one.dtype for one in products} == {torch.bfloat16}


def test_embed_stage_tells_what_is_wrong_with_a_row(
    clip_folder: Path, photos: list[np.ndarray]
) -> None:
    jpeg = encode_jpeg(photos[4])
    table = table_of(
        [jpeg, b"<html>", jpeg[: len(jpeg) // 2], None, jpeg], ["ok", "ok", "ok", "http_404", "ok"]
    )
    before = table.to_pydict()
    done = stage_of(clip_folder)(table)
    assert table.to_pydict() == before
    statuses = ["ok", "not_an_image", "truncated", "http_404", "ok"]
    assert done["status"].to_pylist() == statuses
    assert [v is not None for v in done["embedding"].to_pylist()] == [s == "ok" for s in statuses]
    assert [v is not None for v in done["image"].to_pylist()] == [s == "ok" for s in statuses]
    assert done["sample_id"].to_pylist() == before["sample_id"]
    np.testing.assert_array_equal(*vectors_of(done.filter(pa.array([True] + 3 * [False] + [True]))))


def test_embed_stage_of_no_rows_has_its_columns(clip_folder: Path) -> None:
    done = stage_of(clip_folder)(table_of([]))
    assert done.num_rows == 0
    assert done.schema.field("embedding").type == pa.list_(pa.float32())


def test_embed_stage_without_images_names_the_missing_column(clip_folder: Path) -> None:
    with pytest.raises(SchemaError, match="column 'image' missing before stage 'embed'"):
        stage_of(clip_folder)(pa.table({"status": ["ok"]}))


class Blind:
    """An embedder that fails on dark images, as a network does that overflows."""

    dim = 2

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        bright = np.array([image.mean() for image in images])
        return np.stack([np.where(bright < 1, np.nan, 1.0), 0 * bright], 1).astype(np.float32)


def test_embed_stage_gives_a_vector_that_is_not_finite_its_status(clip_folder: Path) -> None:
    stage = stage_of(clip_folder)
    stage.embedder = Blind()
    dark, white = (np.full((9, 9, 3), value, np.uint8) for value in (0, 255))
    done = stage(table_of([encode_png(dark), encode_png(white)]))
    assert done["status"].to_pylist() == ["not_finite", "ok"]
    assert done["embedding"].to_pylist() == [None, [1.0, 0.0]]


def test_text_features_are_unit_means_of_unit_prompts(clip_folder: Path) -> None:
    embedder = load_clip_folder(clip_folder, torch.device("cpu"))
    queries, templates = ("crane bird", "gull"), ("a {}.", "the {} here", "{}")
    features = text_features(embedder, queries, templates)
    tokens = open_clip.SimpleTokenizer(str(clip_folder / "bpe.txt.gz"), context_length=CONTEXT)
    config = json.loads((clip_folder / "clip.json").read_text())
    model = open_clip.CLIP(**config)
    open_clip.load_checkpoint(model, str(clip_folder / "clip.safetensors"))
    for query, feature in zip(queries, features, strict=True):
        texts = tokens([template.format(query) for template in templates])
        each = model.eval().encode_text(texts, normalize=True).detach().numpy()
        mean = each.mean(axis=0)
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean), atol=1e-5)


def test_text_feature_is_the_same_bits_in_any_list_of_names(clip_folder: Path) -> None:
    embedder = load_clip_folder(clip_folder, torch.device("cpu"))
    templates = tuple(f"picture {n} of {{}}" for n in range(85))
    names = ["gull", "crane bird", "tower crane", "horse"]
    together = text_features(embedder, names, templates)
    for row, name in enumerate(names):
        np.testing.assert_array_equal(text_features(embedder, [name], templates)[0], together[row])


@pytest.mark.parametrize("name", ["clip.json", "clip.safetensors", "bpe.txt.gz"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_clip_folder_with_a_bad_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = write_clip_folder(tmp_path) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"embed\.weights|embed\.model"):
        Embed(EmbedConfig(weights=str(tmp_path)))


def test_clip_folder_whose_merges_are_anothers_is_refused(tmp_path: Path) -> None:
    (write_clip_folder(tmp_path) / "bpe.txt.gz").write_bytes(gzip.compress(b"#version\nc r"))
    with pytest.raises(CheckpointError, match=r"makes 515 tokens, clip\.json expects 517"):
        load_clip_folder(tmp_path, torch.device("cpu"))


@pytest.fixture
def registered_model(clip_folder: Path, tmp_path: Path) -> tuple[str, Path]:
    """A tiny model under a name of its own in open_clip's list, and a checkpoint of it."""
    config = json.loads((clip_folder / "clip.json").read_text())
    config["text_cfg"]["vocab_size"] = 49408
    path = tmp_path / "namedmask-test-tiny.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(path)
    torch.save(open_clip.CLIP(**config).state_dict(), tmp_path / "tiny.pt")
    return path.stem, tmp_path / "tiny.pt"


def test_open_clip_model_is_loaded_from_a_file(
    registered_model: tuple[str, Path], photos: list[np.ndarray]
) -> None:
    name, weights = registered_model
    stage = Embed(EmbedConfig(model=f"open_clip:{name}", weights=str(weights), batch_size=2))
    assert stage.embedder.dim == 24
    assert vectors_of(stage(table_of([encode_png(photos[0])]))).shape == (1, 24)
    assert text_features(stage.embedder, ["crane"], ["a {}."]).shape == (1, 24)


@pytest.mark.parametrize("wrapped", [False, True])
def test_open_clip_checkpoint_of_another_image_size_is_refused(
    registered_model: tuple[str, Path], clip_folder: Path, tmp_path: Path, wrapped: bool
) -> None:
    """open_clip itself would interpolate the positions, and say nothing."""
    name, _ = registered_model
    config = json.loads((clip_folder / "clip.json").read_text())
    config["text_cfg"]["vocab_size"] = 49408
    config["vision_cfg"]["image_size"] *= 2
    state = open_clip.CLIP(**config).state_dict()
    path = tmp_path / "larger.pt"
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state, path
    )
    with pytest.raises(CheckpointError, match=r"larger\.pt' are for another image size"):
        Embed(EmbedConfig(model=f"open_clip:{name}", weights=str(path)))


def test_open_clip_checkpoint_of_another_model_is_refused(
    registered_model: tuple[str, Path], tmp_path: Path
) -> None:
    torch.save({"visual.proj": torch.zeros(3)}, tmp_path / "other.pt")
    model = f"open_clip:{registered_model[0]}"
    with pytest.raises(CheckpointError, match=r"other\.pt' cannot be loaded"):
        Embed(EmbedConfig(model=model, weights=str(tmp_path / "other.pt")))


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("open_clip:ViT-L14", "openai", "Did you mean 'ViT-L-14'"),
        ("open_clip:ViT-L-14", "opnai", r"nor a pretrained tag of ViT-L-14; tags: openai, "),
        ("open_clip:ViT-L-14", "", r"tags: openai, .* Set it to one of them or to a checkpoint"),
        ("open_clip:", "", "open_clip model '' is unknown"),
        ("open_clip", "", "embedder 'open_clip' is unknown.* Did you mean 'open_clip:'"),
        ("miniword", "", "Did you mean 'miniworld'"),
        ("no_such_module:embedder", "", "module 'no_such_module' cannot be imported"),
        ("namedmask.images:decod", "", "Did you mean 'decode'"),
    ],
)
def test_unknown_embedder_is_refused_with_the_way_out(
    model: str, weights: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Embed(EmbedConfig(model=model, weights=weights))


def test_cuda_that_is_not_there_is_refused(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"embed\.device is 'cuda'"):
        Embed(EmbedConfig(weights=str(clip_folder), device="cuda"))


def test_registry_names_what_the_run_files_use() -> None:
    assert set(EMBEDDERS) == {"miniworld", "open_clip:"}


def test_embed_of_arrays_that_are_views_or_read_only(
    clip_folder: Path, photos: list[np.ndarray]
) -> None:
    embedder = load_clip_folder(clip_folder, torch.device("cpu"))
    mirrored = photos[0][:, ::-1]
    locked = mirrored.copy()
    locked.flags.writeable = False
    views = [mirrored, locked, np.asfortranarray(mirrored)]
    expected = embedder.embed_images([mirrored.copy()] * 3)
    np.testing.assert_array_equal(embedder.embed_images(views), expected)
    assert not np.array_equal(embedder.embed_images([photos[0]] * 3), expected)
