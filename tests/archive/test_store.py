"""The archive store: whole or not at all, the same bytes twice, training samples as declared."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask import images, schema
from namedmask.archive.samples import ArchiveSamples
from namedmask.archive.store import Accepted, Archive, stem, write_archive
from namedmask.categories import CategorySet
from namedmask.errors import InputError, SchemaError
from namedmask.run.label_ids import Label
from namedmask.storage import files as file_store

CATEGORIES = CategorySet("two", ("crane bird", "mug"), ("crane (bird)", "mug"))


def picture(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and the mask of a box in it."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), bool)
    mask[2 : 3 + seed % 5, 1:6] = True
    return image, mask


def entries_of(label_id: int, seeds: range) -> pa.Table:
    rows = []
    for rank, seed in enumerate(seeds):
        height, width = 9 + seed % 3, 12 + seed % 4
        image, mask = picture(seed, height, width)
        rows.append(
            {
                "category": CATEGORIES.names[label_id - 1],
                "label_id": label_id,
                "rank": 2 * rank,
                "score": 0.5 - rank / 100,
                "sample_id": f"{seed:020x}",
                "url": f"http://a.example/{seed}",
                "image": images.encode_png(image),
                "image_height": height,
                "image_width": width,
                "mask": images.encode_mask(mask),
            }
        )
    return pa.Table.from_pylist(rows, schema.ARCHIVE)


def accepted(*tables: pa.Table) -> list[Accepted]:
    """Return what makes up the archives of the first categories."""
    return [
        Accepted(Label(label_id, name, query), digest_of(table), lambda table=table: [table])
        for label_id, (name, query, table) in enumerate(
            zip(CATEGORIES.names, CATEGORIES.queries, tables, strict=False), start=1
        )
    ]


def digest_of(table: pa.Table) -> str:
    return file_store.digest(file_store.row_hashes(table, table.column_names))


def write(folder: Path) -> Archive:
    """Write an archive of 19 and 5 entries; the pictures 17 and 18 serve both categories."""
    both = accepted(entries_of(1, range(19)), entries_of(2, range(17, 22)))
    return write_archive(folder, both, wanted=20)


def write_refined(archive: Archive, name: str) -> None:
    """Write inverted masks as the refined ones."""
    table = archive.entries(name)
    rows = zip(
        table["mask"].to_pylist(), table["image_height"].to_pylist(),
        table["image_width"].to_pylist(), strict=True,
    )  # fmt: skip
    masks = [images.encode_mask(~images.decode_mask(*row)) for row in rows]
    place = table.schema.get_field_index("mask")
    refined = table.set_column(place, "mask", pa.array(masks, pa.binary()))
    file_store.write_file(archive.refined_path(name), refined.select(schema.REFINED.names))


def test_archive_written_is_read_back_with_its_manifest(tmp_path: Path) -> None:
    write(tmp_path / "archive")
    archive = Archive.open(tmp_path / "archive", verify=True)
    assert archive.names == CATEGORIES.names
    assert archive.names_by_label == {1: "crane bird", 2: "mug"}
    assert archive.num_labels == 3
    assert archive.entries("mug").equals(entries_of(2, range(17, 22)))
    first = archive.category("crane bird")
    assert (first.file, first.query) == ("00001-crane-bird.parquet", "crane (bird)")
    assert (first.count, first.wanted) == (19, 20)
    manifest = json.loads((tmp_path / "archive" / "manifest.json").read_text())
    assert manifest["format_version"] == schema.FORMAT_VERSION
    assert [row["name"] for row in manifest["categories"]] == list(CATEGORIES.names)


def test_archive_of_equal_entries_has_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["00001-crane-bird.parquet", "00002-mug.parquet", "manifest.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_archive_without_a_category_keeps_the_labels_of_the_others(tmp_path: Path) -> None:
    birds, mugs = accepted(entries_of(1, range(19)), entries_of(2, range(17, 22)))
    write_archive(tmp_path, [birds, mugs], wanted=20)
    write_archive(tmp_path, [mugs], wanted=20)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00002-mug.parquet", "manifest.json"]
    archive = Archive.open(tmp_path, verify=True)
    assert archive.names == ("mug",)
    assert archive.num_labels == 3
    assert archive.label_names == ("(removed 1)", "mug")
    labels = [archive.samples(refined=False)[index][1].max() for index in range(5)]
    assert set(labels) == {2}


def test_archive_written_again_touches_only_what_changed(tmp_path: Path) -> None:
    write(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    birds, mugs = accepted(entries_of(1, range(19)), entries_of(2, range(16, 22)))
    birds = replace(birds, entries=lambda: pytest.fail("read though nothing changed"))
    archive = write_archive(tmp_path, [mugs, birds], wanted=20)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert [name for name in after if after[name] != before[name]] == ["00002-mug.parquet"]
    assert [category.count for category in archive.categories] == [19, 6]


def test_archive_cut_off_in_a_change_and_changed_back_is_what_it_was(tmp_path: Path) -> None:
    def killed() -> pa.Table:
        raise RuntimeError("killed")

    old = accepted(entries_of(1, range(19)), entries_of(2, range(17, 22)))
    write_archive(tmp_path, old, wanted=20)
    birds, mugs = accepted(entries_of(1, range(1, 19)), entries_of(2, range(16, 22)))
    with pytest.raises(RuntimeError, match="killed"):
        write_archive(tmp_path, [birds, replace(mugs, entries=killed)], wanted=20)
    write_archive(tmp_path, old, wanted=20)
    assert (
        Archive.open(tmp_path, verify=True).entries("crane bird").equals(entries_of(1, range(19)))
    )


def test_archive_cut_off_before_its_manifest_is_none(tmp_path: Path) -> None:
    def killed() -> pa.Table:
        raise RuntimeError("killed")

    birds, mugs = accepted(entries_of(1, range(2)), entries_of(2, range(2)))
    with pytest.raises(RuntimeError, match="killed"):
        write_archive(tmp_path, [birds, replace(mugs, entries=killed)], wanted=2)
    with pytest.raises(InputError, match=r"holds no archive: manifest\.json is missing"):
        Archive.open(tmp_path)


def test_archive_entries_without_a_column_are_refused(tmp_path: Path) -> None:
    table = entries_of(1, range(2)).drop_columns(["mask"])
    with pytest.raises(SchemaError, match="column 'mask' missing at the archive of 'crane bird'"):
        write_archive(tmp_path, accepted(table), wanted=2)


def test_archive_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(InputError, match="format_version 99"):
        Archive.open(tmp_path)


def test_archive_missing_file_is_told_by_category(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "00002-mug.parquet").unlink()
    with pytest.raises(InputError, match="the archive of 'mug', is missing"):
        Archive.open(tmp_path)


def test_archive_altered_file_is_noticed_when_verified(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "00002-mug.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    Archive.open(tmp_path)
    with pytest.raises(InputError, match="the archive of 'mug', has sha256"):
        Archive.open(tmp_path, verify=True)


def test_archive_unknown_category_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no category 'cup'; it has crane bird, mug"):
        write(tmp_path).entries("cup")


def test_archive_samples_are_decoded_with_their_label_on_the_mask(tmp_path: Path) -> None:
    samples = write(tmp_path).samples(refined=False)
    assert len(samples) == 24
    for index, (seed, label) in enumerate(
        [(s, 1) for s in range(19)] + [(s, 2) for s in range(17, 22)]
    ):
        image, labels = samples[index]
        expected, mask = picture(seed, 9 + seed % 3, 12 + seed % 4)
        assert image.dtype == np.uint8 and np.array_equal(image, expected)
        assert labels.dtype == np.uint16 and np.array_equal(labels, mask * label)


@pytest.mark.parametrize("index", [-1, 24, 1000])
def test_archive_sample_out_of_range_raises(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError):
        write(tmp_path).samples(refined=False)[index]


def test_archive_image_of_two_categories_is_two_samples(tmp_path: Path) -> None:
    samples = write(tmp_path).samples(refined=False)
    assert np.array_equal(samples[17][0], samples[19][0])
    assert (samples[17][1].max(), samples[19][1].max()) == (1, 2)


def test_image_of_two_categories_keeps_a_mask_of_each(tmp_path: Path) -> None:
    archive = write(tmp_path / "archive")
    ids = [archive.entries(name)["sample_id"].to_pylist() for name in archive.names]
    assert ids[0][17] == ids[1][0]
    write_refined(archive, "mug")
    of_mug = archive.refined_path("mug").read_bytes()
    assert "refined_mask" not in archive.entries("crane bird").column_names
    write_refined(archive, "crane bird")
    assert archive.refined_path("mug").read_bytes() == of_mug
    refined = archive.samples(refined=True)
    assert (refined[17][1].max(), refined[19][1].max()) == (1, 2)


@pytest.mark.parametrize(("names", "count"), [(("mug",), 5), (("mug", "crane bird"), 24)])
def test_archive_samples_of_an_expert_have_label_one(
    tmp_path: Path, names: tuple[str, ...], count: int
) -> None:
    samples = write(tmp_path).thing_samples(*names)
    assert len(samples) == count
    assert {int(samples[index][1].max()) for index in range(count)} == {1}


def test_archive_cache_holds_what_fits_and_changes_nothing(tmp_path: Path) -> None:
    archive = write(tmp_path)
    cached, uncached = archive.samples(refined=False), archive.samples(refined=False, cache_mb=0)
    assert cached[3][0] is cached[3][0]
    assert uncached[3][0] is not uncached[3][0]
    for index in range(len(cached)):
        for one, other in zip(cached[index], uncached[index], strict=True):
            assert np.array_equal(one, other)


def test_archive_refined_masks_take_the_place_of_the_pseudo_masks(tmp_path: Path) -> None:
    archive = write(tmp_path / "archive")
    assert "refined_mask" not in archive.entries("mug").column_names
    with pytest.raises(InputError, match=r"'crane bird' has no refined masks.*Run 'refine' first"):
        archive.samples(refined=True)
    for name in archive.names:
        write_refined(archive, name)
    assert archive.entries("mug")["refined_mask"].null_count == 0
    pseudo, refined = archive.samples(refined=False), archive.samples(refined=True)
    for index in range(len(pseudo)):
        assert np.array_equal(pseudo[index][1] > 0, refined[index][1] == 0)


def test_archive_refined_masks_of_other_images_are_refused(tmp_path: Path) -> None:
    archive = write(tmp_path / "archive")
    for name in archive.names:
        write_refined(archive, name)
    others = accepted(entries_of(1, range(1, 20)), entries_of(2, range(17, 22)))
    archive = write_archive(tmp_path / "archive", others, wanted=20)
    with pytest.raises(InputError, match="holds masks of other images"):
        archive.samples(refined=True)


def total_of(samples: ArchiveSamples, index: int) -> int:
    image, labels = samples[index]
    return int(image.sum()) + int(labels.sum())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_archive_samples_read_alike_in_forked_processes_and_pickled(tmp_path: Path) -> None:
    samples = write(tmp_path).samples(refined=False, cache_mb=0)
    expected = [total_of(samples, index) for index in range(24)]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        found = list(pool.map(total_of, [samples] * 24, range(24)))
    assert found == expected
    assert total_of(pickle.loads(pickle.dumps(samples)), 5) == expected[5]


def test_archive_file_names_differ_for_names_that_look_alike() -> None:
    assert stem(1, "a/b") == "00001-a-b"
    assert stem(2, "a b") == "00002-a-b"
    assert "/" not in stem(3, "../漢")


def test_samples_of_a_row_that_holds_no_image_are_told_by_file_and_row(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "00002-mug.parquet"
    table = file_store.read_parquet(path)
    cut = [data[: 40 * (row != 3)] or data for row, data in enumerate(table["image"].to_pylist())]
    place = table.schema.get_field_index("image")
    broken = table.set_column(place, "image", pa.array(cut, pa.binary()))
    with file_store.TableWriter(path, broken.schema, group_rows=8) as writer:
        writer.write(broken)
    samples = Archive.open(tmp_path).samples(refined=False)
    assert samples[19 + 3][0].shape[2] == 3
    with pytest.raises(InputError, match=r"00002-mug\.parquet: row 4 holds no sample"):
        samples[19 + 4]
