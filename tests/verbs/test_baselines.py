"""The baselines on the mini world with the tiny CLIP: sweeps, thresholds taken over, one table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from namedmask import images, schema
from namedmask.archive.store import Accepted, write_archive
from namedmask.cli.app import main
from namedmask.config.run_file import Config, to_toml
from namedmask.engine.local import PlainLoop
from namedmask.errors import ConfigError, InputError
from namedmask.evaluate.benchmarks import open_benchmark
from namedmask.evaluate.scorer import sum_up
from namedmask.evaluate.thresholds import THRESHOLDS
from namedmask.miniworld import pictures
from namedmask.report import write_report
from namedmask.run import ledger
from namedmask.run.label_ids import Label
from namedmask.run.progress import SilentProgress
from namedmask.verbs import baselines

NAMES = ("fish", "car", "chair", "guitar")
IDS = [pictures.NAMES.index(name) + 1 for name in NAMES]
SCENES, KEPT = 6, 3


def photo(seed: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a drawn photo of NAMES[place] and its label map, (80, 96) uint8."""
    rng = np.random.default_rng((7, seed, place))
    drawn = pictures.photo(rng, IDS[place], 80, 96, 0.0)
    return drawn.pixels(), np.where(drawn.label == IDS[place], place + 1, 0).astype(np.uint8)


def write_scenes(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "benchmark.toml").write_text(f"names = {json.dumps(NAMES)}\n")
    for first, split in enumerate(("select", "test")):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for number in range(SCENES):
            image, label = photo(100 * (first + 1) + number, number % len(NAMES))
            (root / split / "images" / f"{number}.png").write_bytes(images.encode_png(image))
            (root / split / "labels" / f"{number}.png").write_bytes(images.encode_png(label))


def entries(place: int) -> pa.Table:
    rows = []
    for rank in range(KEPT):
        image, label = photo(rank, place)
        rows.append(
            {
                "category": NAMES[place], "label_id": place + 1, "rank": rank, "score": 0.5,
                "sample_id": f"{100 * place + rank:020x}", "url": "http://a.example/1",
                "image": images.encode_png(image), "image_height": 80, "image_width": 96,
                "mask": images.encode_mask(label > 0),
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema.ARCHIVE)


def write_archives(folder: Path) -> None:
    def accepted(place: int, name: str) -> Accepted:
        return Accepted(Label(place + 1, name, name), name, lambda: [entries(place)])

    write_archive(folder, map(accepted, range(len(NAMES)), NAMES), KEPT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `scenes`, and `run` with archives and the segmenter's evaluation."""
    folder = tmp_path_factory.mktemp("baselines")
    write_scenes(folder / "scenes")
    write_archives(folder / "run" / "archive")
    run = {"format_version": schema.FORMAT_VERSION, "verbs": {}}
    (folder / "run" / "run.json").write_text(json.dumps(run))
    own = {"benchmark": "scenes", "split": "test", "miou": 0.5, "pixel_accuracy": 0.9}
    rest = {"names": list(NAMES), "num_scenes": SCENES, "iou": {"fish": 0.5}, "scenes": []}
    (folder / "run" / "evaluation.json").write_text(json.dumps(own | rest))
    return folder


def config_of(world: Path, *overrides: str) -> Config:
    tree: dict[str, Any] = {
        "run": {"out": str(world / "run"), "threads": 1},
        "categories": {"names": list(NAMES), "templates": ["a {}", "a photo of a {}"]},
        "evaluate": {"benchmark": "folder", "root": str(world / "scenes"), "split": "select"},
        "baselines": {
            "shorter_side": 96, "normalization": "clip", "temperature": 16.0, "crop": 64,
            "scale": 10.0,
        },
    }  # fmt: skip
    return Config.of(tree, overrides)


def judge(name: str, config: Config, **options: Any) -> dict[str, Any]:
    found = baselines.evaluate_baseline(name, config, SilentProgress(), PlainLoop(), **options)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Path:
    """Return a copy of `world` to write in."""
    shutil.copytree(world, tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize("name", ["maskclip", "reco"])
def test_sweep_equals_twenty_evaluations(name: str, own: Path) -> None:
    config = config_of(own)
    found = judge(name, config, sweep=True)
    assert len(found["curve"]) == 20
    vectors = baselines._class_vectors(
        name, PlainLoop(), baselines.VerbRun(config, ledger.Ledger(own / "run"), SilentProgress()),
        [(one, one) for one in NAMES],
    )  # fmt: skip
    probabilities = baselines.BASELINES[name].open(config, NAMES, vectors)
    for point, threshold in zip(found["curve"], THRESHOLDS, strict=True):
        scorer = baselines._open_scorer(lambda: probabilities, float(threshold), config)
        benchmark = open_benchmark(config.evaluate)
        alone = sum_up([scorer(range(SCENES))], NAMES, benchmark, config.evaluate, None)
        assert (point["miou"], point["pixel_accuracy"]) == (alone["miou"], alone["pixel_accuracy"])
    values = [point["miou"] for point in found["curve"]]
    assert len(set(values)) > 5, "the curve is flat, so it shows nothing"
    assert found["miou"] == max(values)
    assert found["threshold"] == found["curve"][values.index(max(values))]["threshold"]
    svg = Path(found["file"]).with_suffix(".svg").read_text()
    assert svg.startswith("<svg") and svg.count("<circle") == 21


@pytest.mark.parametrize("name", ["maskclip", "reco"])
def test_one_evaluation_at_a_threshold_of_the_curve_has_its_score(name: str, own: Path) -> None:
    point = judge(name, config_of(own), sweep=True)["curve"][11]
    alone = judge(name, config_of(own), threshold=point["threshold"])
    assert alone["miou"] == point["miou"]
    assert alone["chosen_on"] is None and not alone["chosen_here"]
    assert set(alone["iou"]) == {"background", *NAMES}


def test_threshold_is_used_elsewhere_and_flagged_where_it_was_chosen(own: Path) -> None:
    swept = judge("maskclip", config_of(own), sweep=True)
    assert swept["chosen_here"] and swept["chosen_on"] == {"benchmark": "scenes", "split": "select"}
    path = Path(swept["file"])
    test = config_of(own, "evaluate.split=test")
    elsewhere = judge("maskclip", test, threshold_from=path)
    assert elsewhere["threshold"] == swept["threshold"] and not elsewhere["chosen_here"]
    assert elsewhere["chosen_on"] == swept["chosen_on"]
    again = judge("maskclip", config_of(own), threshold_from=path)
    assert again["chosen_here"] and again["miou"] == swept["miou"]
    with pytest.raises(InputError, match=r"temperature 16\.0, now 5\.0"):
        judge("maskclip", config_of(own, "baselines.temperature=5.0"), threshold_from=path)


def test_thresholds_of_the_paper_are_the_defaults(own: Path) -> None:
    for name, threshold in (("maskclip", 0.25), ("reco", 0.9)):
        found = judge(name, config_of(own))
        assert found["threshold"] == threshold
        assert found["chosen_on"] == {"benchmark": "voc2012", "split": "train"}
        assert not found["chosen_here"]
        assert found["settings"]["model"] == "miniworld"


def test_baselines_find_more_than_chance(own: Path) -> None:
    """On so few categories the CRF spreads them over the background, so ReCo goes without."""
    config = config_of(own, 'baselines.post="softmax"', "baselines.scale=40.0")
    for name in ("maskclip", "reco"):
        found = judge(name, config, sweep=True)
        assert found["miou"] > 0.27, f"{name}: naming all pixels background has 0.17"


def test_categories_are_those_of_the_benchmark_asked_for_as_the_run_does(own: Path) -> None:
    benchmark = open_benchmark(config_of(own).evaluate)
    asked = baselines.categories_of(benchmark, config_of(own))
    assert asked == [(name, name) for name in NAMES]
    cranes = Config.of({"run": {"out": "."}, "categories": {"set": "imagenet_s_919"}})

    class Cranes:
        name, names = "mine", ("crane (machine)", "unheard of")

    found = dict(baselines.categories_of(Cranes(), cranes))
    assert found["unheard of"] == "unheard of"


def test_reco_needs_archives_of_every_category(own: Path) -> None:
    shutil.rmtree(own / "run" / "archive")
    with pytest.raises(InputError, match=r"archives, and .* has none\. Run 'build'"):
        judge("reco", config_of(own))
    (own / "scenes" / "benchmark.toml").write_text('names = ["fish", "car", "chair", "teapot"]\n')
    write_archives(own / "run" / "archive")
    with pytest.raises(InputError, match="no category 'teapot'"):
        judge("reco", config_of(own))
    with pytest.raises(ConfigError, match="baseline"):
        judge("recoo", config_of(own))


def test_context_is_what_another_archive_has(own: Path) -> None:
    context = own / "context"
    write_archive(context, [Accepted(Label(1, "car", "car"), "c", lambda: [entries(1)])], KEPT)
    plain, turned = config_of(own), config_of(own, f'baselines.context="{context}"')
    job = baselines.VerbRun(plain, ledger.Ledger(own / "run"), SilentProgress())
    before = baselines._class_vectors("reco", PlainLoop(), job, [("fish", "fish"), ("car", "car")])
    job = baselines.VerbRun(turned, job.ledger, SilentProgress())
    after = baselines._class_vectors("reco", PlainLoop(), job, [("fish", "fish"), ("car", "car")])
    assert before is not None and after is not None
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    assert not np.allclose(before[0], after[0])
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)  # the context's own vector


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return code, captured.out, captured.err

    return run


def test_command_shows_curve_table_and_flag(own: Path, run: Any) -> None:
    run_file = own / "run.toml"
    run_file.write_text(to_toml(config_of(own)))
    evaluate = ("evaluate", run_file, "--local", "--baseline")
    code, out, _ = run(*evaluate, "maskclip", "--sweep")
    assert code == 0 and "0.95" in out and "chosen on this very split" in out
    sweep = own / "run" / "baselines" / "maskclip-scenes-select-sweep.json"
    assert sweep.is_file()
    split = ("--set", "evaluate.split=test")
    code, out, _ = run(*evaluate, "maskclip", "--threshold-from", sweep, *split)
    assert code == 0 and "of scenes select" in out and "this very split" not in out
    code, out, _ = run(*evaluate, "reco", "--threshold", "0.5", *split)
    assert code == 0
    table = [line.split()[0] for line in out.splitlines() if line.startswith(("N", "M", "R"))]
    assert table == ["NamedMask", "MaskCLIP", "ReCo"]
    code, out, _ = run(*evaluate, "maskclip", "--json", *split)
    assert code == 0 and json.loads(out)["baseline"] == "maskclip"
    code, _, error = run("evaluate", run_file, "--local", "--sweep")
    assert code == 2 and "only with --baseline" in error
    code, _, error = run(*evaluate, "maskclip", "--sweep", "--threshold", "0.5")
    assert code == 2 and "at most one of these options" in error


def test_report_holds_all_three_in_one_table_and_the_curves(own: Path) -> None:
    config = config_of(own)
    (own / "run" / "run.toml").write_text(to_toml(config))
    page = write_report(own / "run").read_text()
    assert "namedmask evaluate --baseline maskclip" in page
    for name in ("maskclip", "reco"):
        judge(name, config, sweep=True)
        judge(name, config_of(own, "evaluate.split=test"))
    page = write_report(own / "run").read_text()
    part = page[page.index('id="baselines"') :]
    table = part[part.index("scenes, test") :]
    table = table[: table.index("</table>")]
    assert all(name in table for name in ("NamedMask", "MaskCLIP", "ReCo"))
    assert "0.90, of voc2012 train" in table and "not needed" in table
    assert "chosen on this very split" in part
    assert part.count("<svg") >= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_baselines_on_ray_equal_the_plain_loop(own: Path) -> None:
    from namedmask.engine.on_ray import connect

    config = config_of(own, "evaluate.actors=[2, 2]", "ray.num_cpus=4")
    for name in ("maskclip", "reco"):
        plain = judge(name, config, sweep=True)
        with connect(config) as executor:
            found = baselines.evaluate_baseline(
                name, config, SilentProgress(), executor, sweep=True
            )
        assert found == plain
