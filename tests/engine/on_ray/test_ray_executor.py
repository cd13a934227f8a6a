"""Graphs on a real Ray: the bytes of the plain loop, and what happens when things go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import ray

from namedmask.config import Config
from namedmask.engine.on_ray import connect
from namedmask.engine.on_ray.actors import Mapper
from namedmask.engine.on_ray.graphs import stream
from namedmask.engine.on_ray.metadata_scan import scanned_waves
from namedmask.engine.on_ray.ray_executor import RayExecutor, _pool
from namedmask.errors import ClusterTooSmallError, ConfigError, NamedMaskError, SchemaError
from namedmask.metadata import clean as metadata
from namedmask.run.job import VerbRun
from namedmask.run.ledger import open_run
from namedmask.run.progress import SilentProgress
from namedmask.verbs import build as verbs
from namedmask.verbs import collect
from tests.road import config_of, digests, stored

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.timeout(300),
]
SILENT = SilentProgress()


@pytest.fixture(scope="module")
def plain(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder curated by the plain loop."""
    out = tmp_path_factory.mktemp("plain")
    verbs.curate(config_of(source, out), SILENT)
    return out


@pytest.fixture(scope="module")
def executor(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    out = tmp_path_factory.mktemp("nowhere")
    with connect(config_of(source, out, "ray.num_cpus=8", "ray.object_store_mb=200")) as executor:
        yield executor


def test_on_ray_curate_has_the_bytes_of_the_plain_loop_and_repeats_for_free(
    source: str, plain: Path, executor: RayExecutor, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path)
    result = verbs.curate(config, SILENT, executor)
    assert digests(tmp_path) == digests(plain)
    assert result["rows_in"] == sum(result["rows_by_status"].values())
    assert {"fetch", "faces", "saliency", "bilateral"} <= result["seconds"].keys()
    assert not (tmp_path / "metadata").exists()
    assert verbs.curate(config, SILENT, executor)["skipped"]
    assert verbs.curate(config, SILENT)["skipped"], "the plain loop knows the run as finished"


def test_on_ray_fetch_has_the_files_of_the_plain_loop(
    source: str, executor: RayExecutor, tmp_path: Path
) -> None:
    keys = ("fetch.actors=[2, 2]", "fetch.longest_side=40")
    found = collect.fetch(config_of(source, tmp_path / "ray", *keys), SILENT, executor)
    collect.fetch(config_of(source, tmp_path / "plain", *keys), SILENT)
    assert stored(tmp_path / "ray") == stored(tmp_path / "plain")
    assert found["rows_in"] == sum(found["rows_by_status"].values())
    assert not (tmp_path / "ray" / "metadata").exists()


def urls(*numbers: int) -> pa.Table:
    return pa.table({"url": [f"http://example.org/{number}.jpg" for number in numbers]})


def test_on_ray_scan_finds_the_rows_of_the_plain_loop_over_many_files(
    executor: RayExecutor, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in "abcd":
        pq.write_table(urls(*rng.integers(0, 400, 150)), tmp_path / f"{name}.parquet")
    pacsv.write_csv(urls(*rng.integers(0, 400, 90), 7, 7), tmp_path / "e.csv")
    odd = pa.table({"URL": ["", "no url", "HTTP://EXAMPLE.org:80/3.jpg"], "NSFW": ["", "", "NSFW"]})
    pq.write_table(odd, tmp_path / "f.parquet")
    executor._connect()
    for max_rows in (0, 333):
        tree = {
            "run": {"out": str(tmp_path / f"run{max_rows}"), "wave_rows": 64},
            "metadata": {"source": [str(tmp_path / "*.*")], "max_rows": max_rows},
        }
        config = Config.of(tree)
        expected = list(metadata.waves(metadata.read_metadata(config.metadata), 64))
        with open_run(config.run.out) as ledger:
            found = [wave.read() for wave in scanned_waves(VerbRun(config, ledger, SILENT))]
        assert len(found) == len(expected) == (6 if max_rows else 11)
        for one, other in zip(found, expected, strict=True):
            assert one.equals(other)
    assert "duplicate_url" in pa.concat_tables(expected)["status"].to_pylist()


def test_on_ray_bad_tables_are_told_as_by_the_plain_loop(
    executor: RayExecutor, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"picture": ["x"]}), tmp_path / "bad.parquet")
    config = config_of(str(tmp_path / "bad.parquet"), tmp_path / "run")
    with pytest.raises(SchemaError, match="no column of urls"):
        verbs.embed(config, SILENT, executor)


def test_on_ray_bad_parts_are_told_and_bind_nothing(
    source: str, executor: RayExecutor, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="embedder 'thumbnale'"):
        verbs.embed(config_of(source, tmp_path, "embed.model=thumbnale"), SILENT, executor)
    assert "skipped" not in verbs.embed(config_of(source, tmp_path), SILENT, executor)


def test_on_ray_cluster_too_small_is_refused_at_once(
    source: str, executor: RayExecutor, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, "embed.actors=[7, 9]", "embed.num_cpus=1")
    with pytest.raises(ClusterTooSmallError, match=r"embed 7 × 1 CPU.*needs 9 CPU .* has 8"):
        verbs.embed(config, SILENT, executor)
    config = config_of(source, tmp_path, 'embed.device="cuda"')
    with pytest.raises(ClusterTooSmallError, match=r"needs 1 GPU .*has 0"):
        verbs.embed(config, SILENT, executor)
    assert not (tmp_path / "metadata").exists(), "tables were read first"


@ray.remote(num_cpus=8)
class Occupant:
    def ready(self) -> bool:
        return True


def test_on_ray_waiting_stage_is_named_and_the_run_ends(
    source: str, executor: RayExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor._connect()
    config = config_of(source, tmp_path, "ray.heartbeat_s=2", "ray.stall_timeout_s=6")
    pools = [_pool(config, "fetch", Mapper, make=_refuse, registry=None)]
    occupant = Occupant.remote()
    ray.get(occupant.ready.remote())
    try:
        with pytest.raises(NamedMaskError, match=r"nothing moved.*fetch waits for its first actor"):
            list(stream(2, None, pools, config.ray))
        with pytest.raises(NamedMaskError, match=r"nothing moved.*to open embed .* waits for CPUs"):
            verbs.embed(config, SILENT, executor)
        with (
            open_run(tmp_path / "scan") as ledger,
            pytest.raises(NamedMaskError, match=r"nothing moved.*reading the metadata waits"),
        ):
            scanned_waves(VerbRun(config, ledger, SILENT))
    finally:
        ray.kill(occupant)
    assert "fetch waits for its first actor, which needs 1 CPU" in caplog.text


def square(by: int, number: int) -> int:
    return by * number * number


def test_on_ray_map_keeps_the_order_and_tells_errors(
    source: str, executor: RayExecutor, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, "evaluate.actors=[2, 2]")
    with open_run(tmp_path) as ledger:
        job = VerbRun(config, ledger, SILENT)
        found = list(executor.map(job, "evaluate", partial(partial, square, 3), range(9)))
        assert found == [3 * number * number for number in range(9)]
        with pytest.raises(ConfigError, match="broken on purpose"):
            list(executor.map(job, "evaluate", _refuse, [1, 2]))


def _refuse() -> None:
    raise ConfigError("broken on purpose")
