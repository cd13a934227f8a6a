"""The command: verbs, exit codes, messages. No bad input may end in a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from namedmask import schema
from namedmask.cli.app import main
from namedmask.errors import SchemaError, TooManyFailuresError

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "namedmask" / "data" / "runs"
VERBS = (
    "demo", "curate", "embed", "build", "refine", "train", "evaluate", "submit", "predict",
    "report", "search", "plan", "inspect", "weights", "doctor",
)  # fmt: skip


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\nout = "{tmp_path / "out"}"\n', encoding="utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return code, captured.out, captured.err

    return run


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a stand-in in place of the verb, so that a verb's outcome can be chosen."""

    def install(outcome: Any) -> None:
        def verb(config: Any, progress: Any, executor: Any) -> dict[str, Any]:
            with progress.step("fetch", 2) as step:
                step.advance(2, {"ok": 2})
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("namedmask.verbs.collect.embed", verb)
        monkeypatch.setattr("namedmask.engine.executor_of", lambda *_: nullcontext())

    return install


def in_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_help_lists_every_verb_and_loads_nothing_heavy() -> None:
    done = in_process(
        "import sys, resource; from namedmask.cli import main; code = main(['--help']);"
        "heavy = {'torch', 'cv2', 'pyarrow', 'numpy', 'aiohttp'} & set(sys.modules);"
        "spent = resource.getrusage(resource.RUSAGE_SELF); cpu = spent.ru_utime + spent.ru_stime;"
        "sys.exit(code or (f'heavy {heavy}' if heavy else 0) or (f'{cpu} s' if cpu > 1.5 else 0))"
    )
    assert done.returncode == 0, done.stderr
    assert all(f" {verb} " in done.stdout for verb in VERBS)


def test_module_run_with_missing_file_exits_2_with_one_message() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "namedmask", "curate", "nowhere.toml"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: run file nowhere.toml does not exist.\n"
    assert done.stdout == ""


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help_exits_0(run, verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert f"namedmask {verb}" in out


def test_version_is_written_alone(run) -> None:
    from namedmask import __version__

    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("demo", "--seed", "x"), ("demo", "--seed", "-1"), ("curate",)]
)
def test_bad_usage_exits_2(run, arguments: tuple[str, ...]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "Usage: namedmask" in err


@pytest.mark.parametrize(
    "verb", ["curate", "embed", "build", "refine", "train", "evaluate", "plan"]
)
def test_verb_unknown_key_exits_2_and_proposes_the_known_one(run, run_file: Path, verb) -> None:
    code, out, err = run(verb, run_file, "--set", "retrieve.archive_sise=3")
    assert code == 2
    assert err.startswith("error: ")
    assert "unknown key 'retrieve.archive_sise'; did you mean 'archive_size'?" in err
    assert out == ""


def test_message_with_brackets_is_not_read_as_markup(run, run_file: Path) -> None:
    _, _, err = run("plan", run_file, "--set", "retrieve.[red]x=3")
    assert "[red]x" in err


@pytest.mark.parametrize("arguments", [("curate",), ("train",)])
def test_run_folder_that_cannot_be_made_exits_2_before_any_work(
    run, run_file: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    code, _, err = run(*arguments, run_file, "--set", f"run.out={out}")
    assert code == 2
    assert f"output folder {out} cannot be written" in err
    assert "run.out" in err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, a read-only folder")
def test_demo_into_a_read_only_folder_exits_2(run) -> None:
    code, _, err = run("demo", "--out", "/proc/self")
    assert code == 2
    assert "output folder /proc/self cannot be written" in err
    assert "--out" in err


def test_verb_done_shows_summary_on_stdout_and_progress_on_stderr(run, run_file, local) -> None:
    local({"images": 1200, "rows_by_status": {"ok": 2, "http_404": 1}})
    code, out, err = run("embed", run_file)
    assert code == 0
    assert "1,200" in out
    assert "rows_by_status.http_404" in out
    assert "fetch: done 2 of 2" in err


def test_verb_as_json_writes_one_document_and_is_silent(run, run_file, local) -> None:
    local({"images": 3, "skipped": True})
    code, out, err = run("embed", run_file, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"images": 3, "skipped": True}


def test_verb_finished_before_says_already_done(run, run_file, local, tmp_path: Path) -> None:
    local({"skipped": True})
    code, out, _ = run("embed", run_file)
    assert code == 0
    assert out == f"already done: {tmp_path / 'out'}; nothing to do\n"


def test_verb_shows_the_settings_that_differ(run, run_file, local) -> None:
    local({"skipped": True})
    _, _, err = run("embed", run_file, "--set", "retrieve.archive_size=40")
    assert "retrieve.archive_size = 40\n" in err
    assert "near_duplicate" not in err


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (SchemaError("column 'x' missing."), 2, "error: column 'x' missing.\n"),
        (TooManyFailuresError("9 of 10 rows failed."), 1, "error: 9 of 10 rows failed.\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.parquet"), 2, "a.parquet: No space"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "a.parquet"), 2, "run.out"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "a.parquet"), 2, "a.parquet: Permission"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "a.parquet"), 1, "a.parquet: Input/output"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["input", "run", "disk full", "read-only", "permission", "broken disk", "interrupt"],
)  # fmt: skip
def test_verb_that_fails_exits_with_its_code(
    run, run_file, local, outcome: BaseException, code: int, message: str
) -> None:
    local(outcome)
    got, out, err = run("embed", run_file)
    assert got == code
    assert message in err
    assert out == ""


def test_verb_with_a_bug_names_the_file_with_its_traceback(run, run_file, local, tmp_path) -> None:
    local(ZeroDivisionError("a bug"))
    for number in (1, 2):
        code, out, err = run("embed", run_file)
        path = tmp_path / "out" / "logs" / f"error-{number}.txt"
        assert (code, out) == (1, "")
        assert err.endswith(f"error: ZeroDivisionError: a bug. Details: {path}\n")
        assert "Traceback" in path.read_text() and "in verb" in path.read_text()


@pytest.mark.parametrize("verb", ["predict", "report"])
def test_verb_missing_path_exits_2(run, tmp_path: Path, verb: str) -> None:
    arguments = [tmp_path / "none"] * (2 if verb == "predict" else 1)
    code, _, err = run(verb, *arguments)
    assert code == 2
    assert f"{tmp_path / 'none'} does not exist" in err


def test_plan_shipped_run_counts_images_and_starts_nothing(run, tmp_path: Path) -> None:
    target, out = RUNS / "voc2012_from_imagenet.toml", tmp_path / "never"
    settings = ("--set", f"run.out={out}", "--set", "saliency.detector=miniworld")
    code, text, _ = run("plan", target, *settings, "--json")
    assert code == 0
    planned = json.loads(text)
    assert planned["categories"]["count"] == 20
    assert planned["images"]["wanted"] == 10_000
    assert [stage["name"] for stage in planned["stages"]] == [
        "metadata", "fetch", "embed", "retrieve", "saliency", "bilateral", "experts", "train",
        "evaluate",
    ]  # fmt: skip
    assert any("imagenet/train" in note for note in planned["notes"])
    assert not out.exists()


def test_plan_of_web_metadata_expects_dead_links(run, run_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "urls.parquet"
    pq.write_table(pa.table({"url": ["http://a/b.jpg"] * 30}), path)
    code, text, _ = run(
        "plan", run_file, "--json", "--set", 'categories.names=["a cat", "a dog"]',
        "--set", "retrieve.archive_size=20", "--set", f'metadata.source=["{path}"]',
    )  # fmt: skip
    assert code == 0
    images = json.loads(text)["images"]
    assert (images["wanted"], images["candidates_tried_first"]) == (40, 60)
    assert (images["attempts_expected"], images["metadata_rows"]) == (80, 30)
    assert any("30 rows for 40 wanted" in note for note in json.loads(text)["notes"])


def test_plan_unknown_detector_exits_2_and_proposes_the_known_one(run, run_file: Path) -> None:
    code, _, err = run(
        "plan", run_file, "--set", "categories.set=voc2012", "--set", "saliency.detector=minworld"
    )
    assert code == 2
    assert "saliency detector 'minworld' is unknown" in err
    assert "Did you mean 'miniworld'?" in err


def test_plan_for_people_fits_a_terminal(run) -> None:
    code, out, _ = run("plan", RUNS / "template.toml")
    assert code == 0
    assert "nothing was started" in out


def test_inspect_table_tells_rows_types_and_statuses(run, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = {"sample_id": ["a", "b"], "url": ["u", "v"], "status": ["ok", "timeout"]}
    pq.write_table(pa.table(rows).cast(schema.ROW_TOMBSTONES), path)
    found = json.loads(run("inspect", path, "--json")[1])
    assert found["kind"] == "table"
    assert found["rows"] == 2
    assert found["columns"] == {"sample_id": "string", "url": "string", "status": "string"}
    assert found["rows_by_status"] == {"ok": 1, "timeout": 1}


def test_inspect_checkpoint_tells_names_and_parameters(run, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "c.pt"
    tree = {"name": "tiny", "names": ("a", "b"), "step": 3, "model": {"w": torch.zeros(2, 3)}}
    torch.save(tree, path)
    found = json.loads(run("inspect", path, "--json")[1])
    assert (found["kind"], found["parameters"], found["tensors"]) == ("checkpoint", 6, 1)
    assert (found["name"], found["names"], found["step"]) == ("tiny", ["a", "b"], 3)


def test_inspect_run_folder_tells_funnels_and_archive(run, tmp_path: Path) -> None:
    entry = {"name": "horse", "label_id": 1, "count": 3, "wanted": 4}
    manifest = {"format_version": 2, "categories": [entry]}
    funnels = {"rows_in": 2, "rows_by_status": {"ok": 2}, "by_category": {"horse": {"ok": 3}}}
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 2, "embed": "0123"}))
    (tmp_path / "funnels.json").write_text(json.dumps(funnels))
    found = json.loads(run("inspect", tmp_path, "--json")[1])
    assert found["kind"] == "run folder"
    assert found["funnels"] == {"rows_in": 2, "rows_by_status": {"ok": 2}}
    assert found["archive"] == {"horse": "3 of 4"}
    assert found["files"] == 3
    assert run("inspect", tmp_path / "archive")[1].startswith("kind")


def test_inspect_run_file_shows_the_resolved_config(run, run_file: Path) -> None:
    found = json.loads(run("inspect", run_file, "--json")[1])
    assert found["config"]["retrieve"]["archive_size"] == 500


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def bomb(path: Path) -> None:
    import torch

    torch.save({"model": Bomb()}, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("none.parquet", lambda path: None, "does not exist"),
        ("notes.txt", lambda path: path.write_text("x"), "does not know what"),
        ("cut.parquet", lambda path: path.write_bytes(b"PAR1xx"), "cannot be read as parquet"),
        ("cut.pt", lambda path: path.write_bytes(b"PK\x03\x04"), "cannot be read as such"),
        ("empty.pt", lambda path: path.write_bytes(b""), "cannot be read as such"),
        ("bomb.pt", bomb, "cannot be read as such"),
        ("broken.toml", lambda path: path.write_text("[run"), "cannot be read as TOML"),
    ],
    ids=["missing", "text", "parquet", "zip", "empty", "code", "toml"],
)
def test_inspect_bad_file_exits_2_and_runs_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    code, out, err = run("inspect", tmp_path / name)
    assert code == 2
    assert message in err
    assert name in err
    assert out == ""
    assert not (tmp_path / "exploded").exists()


def test_doctor_as_json_knows_this_machine(run) -> None:
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == (1 if found["problems"] else 0)
    assert found["python"] == sys.version.split()[0]
    assert found["cores"] >= 1
    assert {"torch", "torchvision", "pyarrow"} <= found["versions"].keys()


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    from tests.waves import add_wave

    pytest.importorskip("faiss", reason="faiss is not installed: searching needs an extra")
    out = tmp_path / "out"
    add_wave(out, "00000", 60, caption=lambda row: "[red]\x1b[2J thing")
    (out / "run.toml").write_text(
        f'[run]\nout = "{out}"\n[embed]\nmodel = "tests.toys:embedder"\n', encoding="utf-8"
    )
    return out


def test_search_shows_hits_and_says_that_the_index_was_made(run, searched: Path) -> None:
    code, out, _ = run("search", searched, "red", "--k", 3)
    assert code == 0
    assert out.count("http://example.org/00000/") == 3
    assert "[red] [2J thing" in out
    assert "index made now (there was none): flat of 60 vectors, recall@50 1.000" in out
    assert "1 prompt, as typed" in out
    _, again, _ = run("search", searched / "run.toml", "red", "--k", 3)
    assert "made now" not in again


def test_search_as_json_and_html(run, searched: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "found.html"
    code, out, err = run("search", searched, "red", "--json", "--k", 2, "--html", page)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [hit["rank"] for hit in found["hits"]] == [0, 1]
    assert page.read_text(encoding="utf-8").count("<a ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "--k", "3"), "is empty"),
        (("red", "--k", "0"), "--k"),
        (("red", "--set", "search.kind=tree"), "search.kind"),
        (("red", "--set", "search.kind=ivfsq"), "at least 1,000 vectors"),
    ],
)
def test_search_bad_input_exits_2(run, searched: Path, arguments, message: str) -> None:
    code, out, err = run("search", searched, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_search_without_a_run_or_a_store_exits_2(run, run_file: Path, tmp_path: Path) -> None:
    code, _, err = run("search", run_file, "red")
    assert code == 2
    assert "has no vectors to search. Run 'namedmask embed' first." in err
    (tmp_path / "empty").mkdir()
    code, _, err = run("search", tmp_path / "empty", "red")
    assert code == 2
    assert "run.toml is missing" in err
    assert run("search", tmp_path / "nowhere", "red")[0] == 2


def test_evaluate_of_a_checkpoint_needs_no_run(run, tmp_path: Path) -> None:
    code, _, err = run("evaluate", tmp_path / "none.pt")
    assert code == 2 and "expected 'benchmark' and 'root'" in err
    (tmp_path / "own" / "val" / "images").mkdir(parents=True)
    settings = ("--set", "evaluate.benchmark=folder", "--set", f"evaluate.root={tmp_path / 'own'}")
    code, _, err = run("evaluate", tmp_path / "none.pt", *settings)
    assert code == 2 and "benchmark.toml cannot be read" in err
