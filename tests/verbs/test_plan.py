"""Plan: sources are found as the verbs find them, and rows are counted without reading them."""

import pytest

from namedmask.config import Config
from namedmask.metadata.sources import places_of
from namedmask.verbs.plan import plan_of
from tests.tables import urls, write


def plan(tmp_path, *sources):
    tree = {
        "run": {"out": str(tmp_path / "run")},
        "categories": {"names": ["crane"]},
        "metadata": {"source": [str(source) for source in sources]},
    }
    return plan_of(Config.of(tree))


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("a[1].parquet", 3),
        ("a[[]1].parquet", 3),
        ("B.PARQUET", 2),
        ("*.parquet", 3),
        ("**/*.parquet", 7),
        ("ol?/*.parquet", 4),
        ("a.csv", None),
    ],
)
def test_plan_finds_the_sources_that_the_verbs_find(tmp_path, source, rows):
    (tmp_path / "ol\udce9").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    write(tmp_path / "a[1].parquet", {"url": urls(3)})
    write(tmp_path / "B.PARQUET", {"url": urls(2)})
    write(tmp_path / "._c.parquet", {"url": urls(9)})
    write(tmp_path / "d.parquet", {"url": urls(4)}).rename(tmp_path / "ol\udce9" / "d.parquet")
    write(tmp_path / "e.parquet", {"url": urls(9)}).rename(tmp_path / "__MACOSX" / "e.parquet")
    (tmp_path / "a.csv").write_text("url\nhttp://a.com/1\n", encoding="utf-8")
    found = plan(tmp_path, tmp_path / source)
    assert places_of((str(tmp_path / source),))
    assert not [note for note in found["notes"] if "metadata.source" in note]
    assert found["images"]["metadata_rows"] == rows


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("none.parquet", "does not exist"),
        ("none*.parquet", "matches no file"),
        ("none/**/*", "matches no file"),
    ],
)
def test_plan_notes_a_source_that_is_not_there(tmp_path, source, note):
    found = plan(tmp_path, tmp_path / source)
    assert [one for one in found["notes"] if "metadata.source" in one and note in one]
    assert found["images"]["metadata_rows"] is None
