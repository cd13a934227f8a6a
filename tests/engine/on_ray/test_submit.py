"""Runs handed to a real Ray head that wants tokens: results, exit codes, clear refusals."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cluster.local import Head, Shape, cluster
from namedmask.config.run_file import to_toml
from namedmask.engine.on_ray import submit
from namedmask.errors import ConfigError, InputError, RayJobError
from namedmask.run.progress import SilentProgress
from namedmask.run.verb_table import VERBS
from tests import toys
from tests.road import config_of, digests, judged_on_disks, read_json

ROOT = Path(__file__).parents[3]
MODULE = "toys_sent_along"
"""A copy of tests/toys.py under this name travels with the job: the cluster has no such module."""

Run = Callable[..., subprocess.CompletedProcess[str]]

ROAD = ("curate", "refine", "train", "evaluate")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with tokens on ports of its own, whose processes know the package and not the toys."""
    shape = Shape(
        head_cpus=6, max_workers=0, port=6399, dashboard_port=8299, client_port=9399,
        object_store_mb=150,
    )  # fmt: skip
    with cluster(shape, {"PYTHONPATH": ""}) as head:
        yield head


@pytest.fixture(scope="module")
def run(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs `namedmask submit` as a user of the head would."""
    away = tmp_path_factory.mktemp("away")

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        # RAY_ADDRESS would overrule the address in Ray's own client
        environment = os.environ | head.variables | {"PYTHONPATH": str(ROOT)} | variables
        return subprocess.run(
            [sys.executable, "-m", "namedmask", "submit", *map(str, arguments)],
            cwd=away, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    return run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\nout = "{tmp_path / "out"}"\n[metadata]\nsource = ["/none.parquet"]\n')
    return path


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_submit_whole_road_has_the_bytes_of_the_plain_loop(
    head: Head, run: Run, tmp_path: Path
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    shutil.copy(ROOT / "tests" / "toys.py", plugins / f"{MODULE}.py")
    with toys.SmallWeb() as web:
        toys.fill(web, toys.COLORS, each=12)
        source = str(web.write_metadata(tmp_path / "metadata.parquet"))
        config = judged_on_disks(config_of(source, tmp_path / "plain"), tmp_path / "disks")
        for verb in ROAD:
            VERBS[verb].load()(config, SilentProgress())
        path = tmp_path / "run.toml"
        path.write_text(to_toml(config).replace("tests.toys:", f"{MODULE}:"))
        out = tmp_path / "submitted"
        arguments = (
            path, "--address", head.dashboard, "--set", f"run.out={out}",
            "--working-dir", plugins, "--ship-package", "--submission-id",
        )  # fmt: skip
        done = run(*arguments, "first")
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert [result["verb"] for result in results] == list(ROAD)
        assert "embed: done" in done.stderr, "the log is followed"
        assert digests(out) == digests(tmp_path / "plain")
        ours, plain = (read_json(one / "evaluation.json") for one in (out, tmp_path / "plain"))
        assert ours == plain
        hits = web.hits.total()
        again = run(*arguments, "second")
        assert all(json.loads(line)["skipped"] for line in again.stdout.splitlines())
        assert again.returncode == 0 and web.hits.total() == hits
    clash = run(*arguments, "second")
    assert clash.returncode == 2
    assert "second already exists" in clash.stderr
    assert len(clash.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_submit_job_that_fails_hands_its_exit_code_through(
    head: Head, run: Run, run_file: Path
) -> None:
    done = run(run_file, "--address", head.dashboard, "--ship-package", "--verb", "embed")
    assert done.returncode == 2
    assert "metadata.source '/none.parquet' does not exist" in done.stderr
    assert "ended with exit code 2" in done.stderr
    assert done.stdout == ""


FOLLOW = """
import sys
from namedmask.errors import RayJobError
from namedmask.engine.on_ray.submit import connect, follow
client = connect(sys.argv[1])
{before}
try:
    follow(client, "sleeper", lambda line: print(line, flush=True))
except RayJobError as error:
    print(error)
    sys.exit(error.exit_code)
"""
START = 'client.submit_job(entrypoint="echo begun; sleep 600", submission_id="sleeper")'
STOP = 'assert client.get_job_status("sleeper") == "RUNNING"; client.stop_job("sleeper")'


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_submit_left_by_ctrl_c_lets_the_job_go_on_and_a_stopped_one_exits_130(head: Head) -> None:
    def follow(before: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", FOLLOW.format(before=before), head.dashboard]
        environment = os.environ | head.variables | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    following = follow(START)
    assert following.stdout is not None
    for line in following.stdout:
        if line == "begun\n":
            break
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=60)[0]
    assert following.returncode == 130
    assert "job sleeper goes on" in said
    assert f"ray job logs --address {head.dashboard} --follow sleeper" in said
    assert f"ray job stop --address {head.dashboard} sleeper" in said
    stopped = follow(STOP)
    said = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 130
    assert "job sleeper was stopped" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
    ],
    ids=["wrong", "none"],
)
def test_submit_token_that_does_not_fit_is_told_with_the_way_out(
    head: Head, run: Run, run_file: Path, variables: dict[str, str], reason: str
) -> None:
    done = run(run_file, "--address", head.dashboard, **variables)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1", "nothing answers at http://127.0.0.1:1: .*refused"),
        ("http://nowhere.invalid:8265", "nothing answers"),
        ("127.0.0.1:8265", "is not the address of a Ray dashboard"),
        ("ray://127.0.0.1:10001", "is not the address of a Ray dashboard"),
    ],
)
def test_submit_address_without_a_dashboard_is_told(
    run_file: Path, address: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        submit.submit(submit.Submission(run_file), address)


def test_submit_address_of_another_program_is_told(run_file: Path) -> None:
    with toys.SmallWeb() as web, pytest.raises(InputError, match=r"cannot do this.*404"):
        submit.submit(submit.Submission(run_file), web.url)


def test_submit_prefers_its_address_to_the_environment(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with toys.SmallWeb() as web:
        with pytest.raises(InputError, match="404"):
            submit.connect(web.url)
        assert web.hits["/api/version"] == 1
    assert submit.API_ADDRESS not in os.environ


@pytest.mark.parametrize("out", ["runs/one", "./one", "file.s3"])
def test_submit_run_out_in_the_jobs_own_folder_is_refused(run_file: Path, out: str) -> None:
    submission = submit.Submission(run_file, overrides=[f"run.out={out}"])
    with pytest.raises(InputError, match=rf"run\.out '{Path(out)}' is a relative path.*s3://"):
        submit.submit(submission, "http://127.0.0.1:1")


@pytest.mark.parametrize("out", ["/shared/run", "s3://bucket/run"])
def test_submit_run_out_that_outlives_the_job_is_taken(run_file: Path, out: str) -> None:
    submission = submit.Submission(run_file, overrides=[f"run.out={out}"])
    with pytest.raises(InputError, match="nothing answers"):
        submit.submit(submission, "http://127.0.0.1:1")


def test_submit_unknown_verb_proposes_the_known_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'curate'"):
        submit.command("run.toml", ["curat"], ())


def test_submit_command_quotes_what_a_shell_would_read() -> None:
    line = submit.command("my run.toml", ["embed", "build"], ['a.b=["$HOME; rm"]'])
    setting = """--set 'a.b=["$HOME; rm"]' --set ray.address=auto"""
    assert line == (
        f"python -m ray_jobs embed --config 'my run.toml' {setting} && "
        f"python -m ray_jobs build --config 'my run.toml' {setting}"
    )


def test_submit_packs_only_what_is_named(run_file: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    for name in ("own.py", "sub/names.toml", ".env", ".git/config", "__pycache__/own.pyc"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    submit.pack(submit.Submission(run_file, working_dir=source), folder)
    packed = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    jobs = {f"ray_jobs/{path.name}" for path in (ROOT / "ray_jobs").glob("*.py")}
    assert packed == {"run.toml", "own.py", "sub/names.toml"} | jobs
    assert "ray_jobs/__main__.py" in jobs


def test_submit_working_dir_too_large_is_refused_before_it_is_copied(
    run_file: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "archive.bin").open("wb") as file:
        file.truncate(submit.MOST_BYTES + 1)
    with pytest.raises(InputError, match="more than 95 MB"):
        submit.pack(submit.Submission(run_file, working_dir=source), tmp_path / "folder")
    assert not list(tmp_path.glob("folder/*.bin"))
    with pytest.raises(InputError, match="is no folder"):
        submit.pack(submit.Submission(run_file, working_dir=run_file), tmp_path / "folder")


class Log:
    """A client whose connection breaks after each of the texts but the last."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        text = self.texts.pop(0)
        for start in range(0, len(text), 4):
            yield text[start : start + 4]
        if self.texts:
            raise RuntimeError("WebSocket connection closed unexpectedly")


def test_submit_log_taken_up_again_shows_each_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    log = "one\ntwo is longer\n\nthree\nno end"
    lines: list[str] = []
    submit._follow_log(Log(log[:6], log[:6], log[:17], log), "job", lines.append)
    assert lines == log.split("\n")
    with pytest.raises(RuntimeError):
        submit._follow_log(Log(*["x"] * 20), "job", lines.append)


def test_submit_ctrl_c_that_looks_like_a_broken_connection_is_none() -> None:
    class Breaking:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(1)
                yield "never"
            except BaseException:
                raise RuntimeError("the connection was closed") from None

        def get_address(self) -> str:
            return "http://head:8265"

    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    with pytest.raises(RayJobError, match="job sleeper goes on") as caught:
        submit.follow(Breaking(), "sleeper", str)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (-9, 137), (None, 1), (0, 1)])
def test_submit_failed_job_has_the_exit_code_of_a_shell(code: int | None, expected: int) -> None:
    assert submit._failure("job", code, "no such environment").exit_code == expected
