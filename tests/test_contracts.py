"""What every stage promises, over every stage class and every registered part it can be made of."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from namedmask import schema
from namedmask.bilateral import Bilateral
from namedmask.config import (
    BilateralConfig,
    Config,
    EmbedConfig,
    FacesConfig,
    FetchConfig,
    SaliencyConfig,
    Section,
)
from namedmask.embed.stage import Embed
from namedmask.errors import SchemaError
from namedmask.faces.stage import Faces
from namedmask.fetch.stage import Fetch
from namedmask.images.masks import encode_mask
from namedmask.run import stages
from namedmask.run.stages import stage_class
from namedmask.saliency.detectors import SelfMaskSaliency
from namedmask.saliency.stage import Saliency
from namedmask.schema import status as schema_status
from namedmask.schema.status import http_code_of
from tests import toys
from tests.parts import REGISTRIES, setting_of

pytestmark = pytest.mark.numerical

STATUS_TABLE = schema_status.STATUSES
STATUSES = ("ok", "ok", "http_404", "ok", "has_face", "ok", "ok", "timeout", "ok", "ok", "ok")
FACE_ROW, BAD_BYTES_ROW, GONE_ROW = 3, 5, 6


@dataclass(frozen=True)
class Case:
    """A stage class with one of the registered parts it can be made of, or with a toy."""

    stage: Callable[[Any], Any]
    config: Section | None  # None: as tests/parts.py sets the part up
    kind: str = ""
    part: str = ""

    def __str__(self) -> str:
        name = (
            self.part or getattr(self.config, "detector", "") or getattr(self.config, "model", "")
        )
        return f"{self.stage.__name__}-{name}" if name else self.stage.__name__


def over(stage: Callable[[Any], Any], kind: str) -> list[Case]:
    return [Case(stage, None, kind, name) for name in sorted(REGISTRIES[kind].entries)]


CASES = [
    Case(Fetch, FetchConfig(timeout_s=5, retries=0, allow_loopback=True)),
    *over(Embed, "embedder"),
    Case(Embed, EmbedConfig(model="tests.toys:embedder", batch_size=4)),
    *over(Faces, "face detector"),
    Case(Faces, FacesConfig(detector="tests.toys:face_detector")),
    *over(Saliency, "saliency detector"),
    Case(Saliency, SaliencyConfig(detector="tests.toys:saliency_detector", batch_size=4)),
    Case(Bilateral, BilateralConfig()),
]


@pytest.fixture(scope="module")
def web() -> Iterator[toys.SmallWeb]:
    with toys.SmallWeb() as web:
        for row in range(len(STATUSES)):
            color = list(toys.COLORS.values())[row % 3]
            picture = toys.jpeg(toys.disk(color, row, face=row == FACE_ROW))
            body = b"not a picture" if row == BAD_BYTES_ROW else picture
            web.add(f"{row}.jpg", None if row == GONE_ROW else body)
        yield web


@pytest.fixture(scope="module")
def table(web: toys.SmallWeb) -> pa.Table:
    """Rows with every column that some stage reads, dead ones among them."""
    bodies = [web.files.get(f"/{row}.jpg", b"") for row in range(len(STATUSES))]
    masks = []
    for row in range(len(STATUSES)):
        ground = np.zeros((toys.SIDE, toys.SIDE), bool)
        ground[10:30, 5 + row : 30] = True
        masks.append(encode_mask(ground))
    alive = [status == schema.OK for status in STATUSES]
    columns = {
        "sample_id": [f"{row:020x}" for row in range(len(STATUSES))],
        "url": [row["url"] for row in web.rows],
        "caption": ["a picture"] * len(STATUSES),
        "status": list(STATUSES),
        "image": [body if ok else None for body, ok in zip(bodies, alive, strict=True)],
        "mask": [mask if ok else None for mask, ok in zip(masks, alive, strict=True)],
    }
    return pa.table(
        {name: pa.array(values, schema.TYPES[name]) for name, values in columns.items()}
    )


STAGES: dict[str, Any] = {}
SETTINGS: dict[str, Any] = {}


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(params=CASES, ids=str)
def case(
    request: pytest.FixtureRequest, weights_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Case:
    case: Case = request.param
    monkeypatch.setattr(SelfMaskSaliency, "SIDE", 32)  # it works at 512: seconds per image
    if case.config:
        return case
    if str(case) not in SETTINGS:
        SETTINGS[str(case)] = setting_of(case.kind, case.part, weights_folder)
    return replace(case, config=SETTINGS[str(case)])


@pytest.fixture
def stage(case: Case) -> Any:
    """The stage of a case, made once."""
    if str(case) not in STAGES:
        STAGES[str(case)] = case.stage(case.config)
    return STAGES[str(case)]


def offered(stage: Any, table: pa.Table) -> pa.Table:
    """Return `table` with what this stage reads, and without what only it adds."""
    keep = ["sample_id", "url", "caption", "status", *stage.reads]
    return table.select(list(dict.fromkeys(keep)))


def test_contracts_cover_every_stage_of_the_table() -> None:
    assert {stage_class(name) for name in stages.STAGES} == {case.stage for case in CASES}


def test_contract_stage_folder_section_and_name_are_one_stem(stage: Any) -> None:
    assert type(stage).__module__ in (f"namedmask.{stage.name}.stage", f"namedmask.{stage.name}")
    assert stage.name in Config.model_fields
    assert type(stage).__name__.lower() == stage.name
    assert set(stage.reads) | set(stage.adds) <= set(schema.TYPES)
    assert "status" in stage.adds
    assert importlib.import_module(type(stage).__module__).__doc__


def test_contract_columns_come_out_as_declared_and_rows_in_order(
    stage: Any, table: pa.Table
) -> None:
    given = offered(stage, table)
    result = stage(given)
    assert result.num_rows == given.num_rows
    assert result["sample_id"].equals(given["sample_id"])
    new = [name for name in stage.adds if name not in given.column_names]
    assert result.column_names == [*given.column_names, *new]
    for name in result.column_names:
        assert result.schema.field(name).type == schema.TYPES[name], name
    assert result["status"].null_count == 0
    alive = schema.alive(result)
    assert len(alive) > 0
    for name in (*stage.reads, *stage.adds):
        assert result[name].take(alive).null_count == 0, f"{name} is null on a row that is ok"


def test_contract_only_declared_columns_change_on_rows_that_stay_ok(
    stage: Any, table: pa.Table
) -> None:
    given = offered(stage, table)
    result = stage(given)
    alive = schema.alive(result)
    for name in set(given.column_names) - set(stage.adds):
        assert result[name].take(alive).equals(given[name].take(alive)), name


def test_contract_input_is_not_mutated(stage: Any, table: pa.Table) -> None:
    given = offered(stage, table)
    before = given.to_pylist()
    stage(given)
    assert given.to_pylist() == before


def test_contract_dead_rows_pass_untouched(stage: Any, table: pa.Table) -> None:
    given = offered(stage, table)
    dead = [row for row, status in enumerate(STATUSES) if status != schema.OK]
    result = stage(given).take(dead)
    assert result.select(given.column_names).equals(given.take(dead))
    for name in set(result.column_names) - set(given.column_names):
        assert result[name].null_count == len(dead)


def test_contract_row_that_dies_keeps_no_pixels(stage: Any, table: pa.Table) -> None:
    result = stage(offered(stage, table))
    dead = np.setdiff1d(np.arange(result.num_rows), schema.alive(result))
    for name in {"image", "saliency", "mask", "embedding"} & set(result.column_names):
        assert result[name].take(dead).null_count == len(dead), name


def test_contract_bad_bytes_and_dead_links_are_statuses(stage: Any, table: pa.Table) -> None:
    statuses = stage(offered(stage, table))["status"].to_pylist()
    assert statuses[BAD_BYTES_ROW] == "not_an_image"
    assert all(status in STATUS_TABLE or http_code_of(status) for status in statuses)
    assert statuses[GONE_ROW] != schema.OK


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_contract_batch_split_does_not_matter(stage: Any, table: pa.Table, rows: int) -> None:
    given = offered(stage, table)
    parts = [stage(given.slice(start, rows)) for start in range(0, given.num_rows, rows)]
    assert pa.concat_tables(parts).to_pylist() == stage(given).to_pylist()


def test_contract_batch_order_does_not_matter(stage: Any, table: pa.Table) -> None:
    given = offered(stage, table)
    order = np.random.default_rng(1).permutation(given.num_rows)
    assert stage(given.take(order)).to_pylist() == stage(given).take(order).to_pylist()


@pytest.mark.parametrize("kind", ["empty", "all dead"])
def test_contract_batch_without_work_has_the_same_schema(
    stage: Any, table: pa.Table, kind: str
) -> None:
    given = offered(stage, table)
    dead = [row for row, status in enumerate(STATUSES) if status != schema.OK]
    result = stage(given.slice(0, 0) if kind == "empty" else given.take(dead))
    assert result.schema.equals(stage(given).schema)
    assert result.num_rows == (0 if kind == "empty" else len(dead))


def test_contract_missing_column_is_named_with_the_stage(stage: Any, table: pa.Table) -> None:
    for name in (*stage.reads, "status"):
        with pytest.raises(
            SchemaError, match=rf"column '{name}' missing before stage '{stage.name}'"
        ):
            stage(offered(stage, table).drop_columns([name]))


def test_contract_class_and_config_pickle_and_make_the_same_stage(
    case: Case, stage: Any, table: pa.Table
) -> None:
    made, config = pickle.loads(pickle.dumps((case.stage, case.config)))
    given = offered(stage, table).slice(0, 4)
    assert made(config)(given).to_pylist() == stage(given).to_pylist()
