"""The submission of a run to a remote cluster as one Ray job, and its log and exit code.

The job is a shell command, `python -m ray_jobs curate ... && python -m ray_jobs refine ...`, so
that a verb that fails ends the job with its exit code. When the job is submitted again, finished
verbs are skipped, and an unfinished verb resumes from the committed work in `run.out`.

The cluster receives a temporary folder with the run file, `ray_jobs`, and the files of
`working_dir` if it is given. Paths in the run file are therefore paths on the cluster's machines,
or relative to that folder.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shlex
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from namedmask.config import Config
from namedmask.errors import InputError, NamedMaskError, RayJobError, unknown_name
from namedmask.run.verb_table import VERBS, road_of

NOISY_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray's client that are limited to warnings."""

API_ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Environment variable with the address that Ray's client prefers to that in RAY_ADDRESS."""

MOST_BYTES = 100_000_000
"""Maximum total size of the files in `working_dir`, in bytes."""

ANSWER_S = 10.0
"""Timeout of an attempt to connect to a dashboard, in seconds."""

POLL_S = 0.5
"""Seconds between two queries of a job's state, and unit of the pauses before reconnecting."""

TRIES = 5
"""Number of consecutive attempts to reconnect to a job's log."""


@dataclass(frozen=True)
class Submission:
    """A run to submit to a cluster."""

    run_file: Path
    verbs: Sequence[str] = ()  # empty: see verb_table.road_of
    overrides: Sequence[str] = ()  # `section.key=value`
    working_dir: Path | None = None  # folder with files that the job needs
    ship_package: bool = False  # whether the job uses this installation of namedmask
    submission_id: str = ""  # empty: Ray chooses one


def submit(submission: Submission, address: str) -> str:
    """Submit a job that runs the verbs on the cluster at `address`; return its submission id.

    Raises:
        ConfigError: the run file is wrong, or a verb is unknown.
        InputError: `run.out` would be lost, nothing answers at `address`, or the cluster refuses
            the job.
    """
    config = Config.load(submission.run_file, submission.overrides)
    refuse_lost_folder(str(config.run.out))
    verbs = submission.verbs or road_of(config)
    client = connect(address)
    with tempfile.TemporaryDirectory(prefix="namedmask-") as folder, _explained(address):
        pack(submission, Path(folder))
        environment: dict[str, Any] = {"working_dir": folder}
        if submission.ship_package:
            environment["py_modules"] = [str(_folder_of("namedmask"))]
        return client.submit_job(
            entrypoint=command(submission.run_file.name, verbs, submission.overrides),
            runtime_env=environment,
            submission_id=submission.submission_id or None,
            metadata={"run.out": str(config.run.out)},
        )


def refuse_lost_folder(out: str) -> None:
    """Raise InputError if `run.out` would be in the folder of the job, which Ray deletes."""
    if not out.startswith(("/", "s3:/")):
        raise InputError(
            f"run.out '{out}' is a relative path, which on the cluster is in a folder that Ray "
            "deletes with the job. Give an absolute path that all machines of the cluster see, or "
            "s3://bucket/folder."
        )


def command(run_file: str, verbs: Sequence[str], overrides: Sequence[str]) -> str:
    """Return the shell command that runs the verbs one after the other, until a verb fails.

    Raises:
        ConfigError: a verb is unknown.
    """
    values = (*overrides, "ray.address=auto")
    settings = [part for value in values for part in ("--set", value)]
    lines = []
    for verb in verbs:
        if verb not in VERBS:
            raise unknown_name("verb", verb, VERBS)
        words = ["python", "-m", "ray_jobs", verb, "--config", run_file, *settings]
        lines.append(shlex.join(words))
    return " && ".join(lines)


def pack(submission: Submission, folder: Path) -> None:
    """Copy the run file, `ray_jobs` and the files of `working_dir` into `folder`.

    Raises:
        InputError: `working_dir` is not a folder, or its files exceed `MOST_BYTES`.
    """
    source = submission.working_dir
    if source is not None:
        if not source.is_dir():
            raise InputError(
                f"--working-dir {source} is no folder. Give the folder with the files that the run "
                "file names."
            )
        ignored = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(source, folder, ignore=_small_enough(source, ignored), dirs_exist_ok=True)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        _folder_of("ray_jobs"), folder / "ray_jobs", ignore=no_caches, dirs_exist_ok=True
    )
    shutil.copy(submission.run_file, folder / submission.run_file.name)


def _small_enough(source: Path, ignored: Callable[..., set[str]]) -> Callable[..., set[str]]:
    """Return `ignored` for `copytree`, extended to sum the sizes of the files to copy.

    `copytree` calls it before it copies a folder, so too many bytes are refused early.
    """
    size = 0

    def ignore(folder: str, names: list[str]) -> set[str]:
        nonlocal size
        left_out = ignored(folder, names)
        files = [Path(folder, name) for name in set(names) - left_out]
        size += sum(file.stat().st_size for file in files if file.is_file())
        if size > MOST_BYTES:
            raise InputError(
                f"--working-dir {source} holds more than {MOST_BYTES >> 20} MB, up to {folder}. "
                "Give a folder with only the modules and small files that the run file names; "
                "data belongs where the cluster can read it."
            )
        return left_out

    return ignore


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise NamedMaskError(f"package {package} is not installed. Install namedmask again.")
    return Path(spec.origin).parent


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the cluster whose dashboard is at `address`.

    Raises:
        InputError: `address` is not a url, nothing or no Ray dashboard answers there, or the
            cluster requires another token.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"--address '{address}' is not the address of a Ray dashboard; expected something like "
            "http://head:8265."
        )
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with _explained(address), _preferred(address):
        # connect first, since the client would wait minutes for a machine that does not answer
        socket.create_connection((parts.hostname, port), ANSWER_S).close()
        return JobSubmissionClient(address)


@contextmanager
def _preferred(address: str) -> Iterator[None]:
    """Make Ray's client use `address` inside the block, even where RAY_ADDRESS is set."""
    before = os.environ.get(API_ADDRESS)
    os.environ[API_ADDRESS] = address
    try:
        yield
    finally:
        os.environ.pop(API_ADDRESS)
        if before is not None:
            os.environ[API_ADDRESS] = before


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn errors of Ray's client inside the block into InputErrors that name the way out."""
    try:
        yield
    except NamedMaskError:
        raise
    except AuthenticationError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the cluster at {address} requires its token ({reason}). Set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN to the cluster's token, or put the token into ~/.ray/auth_token. "
            "'ray get-auth-token' shows it on the head of the cluster."
        ) from error
    except (ConnectionError, socket.gaierror, TimeoutError) as error:
        raise InputError(
            f"nothing answers at {address}: {error}. Expected the dashboard of a running Ray, by "
            "default at port 8265 of its head. From outside the cluster, forward that port with "
            "'ray dashboard cluster.yaml' or 'kubectl port-forward service/HEAD 8265'."
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, aiohttp.ClientError) as error:
        raise InputError(
            f"the server at {address} cannot do this. Expected the dashboard of a Ray cluster that "
            f"accepts the job; got: {_last_line(str(error))}"
        ) from error


def _last_line(text: str) -> str:
    """Return the last line that is not empty; the lines before it may be the server's traceback."""
    return [line for line in text.splitlines() if line.strip(" .")][-1] if text else "no reason"


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> None:
    """Pass each line of a job's log to `show`; return when the job has succeeded.

    Raises:
        RayJobError: the job failed or was stopped, with its exit code; or Ctrl-C was pressed, which
            does not stop the job.
        InputError: the connection to the cluster is lost.
    """
    address = client.get_address()
    try:
        with _explained(address), _interrupts() as interrupts:
            _follow_log(client, job, show, interrupts)
            while not (info := client.get_job_info(job)).status.is_terminal():
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise RayJobError(
            f"job {job} goes on without being followed. Follow it again with 'ray job logs "
            f"--address {address} --follow {job}', or stop it with 'ray job stop --address "
            f"{address} {job}'.",
            130,
        ) from None
    if info.status == JobStatus.STOPPED:
        raise RayJobError(f"job {job} was stopped. Finished work is kept in run.out.", 130)
    if info.status == JobStatus.FAILED:
        raise _failure(job, info.driver_exit_code, info.message or "")


def _failure(job: str, code: int | None, message: str) -> RayJobError:
    """Return the error of a failed job; `code` is None if it failed before its command ran."""
    if not code:
        return RayJobError(f"job {job} failed: {message}", 1)
    return RayJobError(
        f"job {job} ended with exit code {code}; its own messages are above. Finished work is kept "
        "in run.out. Fix the cause and submit the same run again.",
        code if code > 0 else 128 - code,  # a signal, reported in the way of a shell
    )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yield a list that gets one item per Ctrl-C; each Ctrl-C raises KeyboardInterrupt as usual.

    asyncio's own handler would cancel the task instead. If the connection then raised an error as
    it closes, `_follow_log` would take it for a broken connection, reconnect, and lose the Ctrl-C.
    """
    interrupts: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _follow_log(
    client: JobSubmissionClient,
    job: str,
    show: Callable[[str], None],
    interrupts: Sequence[int] = (),
) -> None:
    """Show the lines of a log until the log ends; reconnect when the connection breaks."""
    log = _Log(show)
    tries = 0
    while True:
        length_before = log.length
        try:
            asyncio.run(log.read(client, job))
            return
        except (RuntimeError, OSError, aiohttp.ClientError):
            if interrupts:
                raise KeyboardInterrupt from None
            tries = 1 if log.length > length_before else tries + 1
            if tries > TRIES:
                raise
            time.sleep(POLL_S * 2**tries)


class _Log:
    """The log of a job. Each connection reads it from its start; each line is shown only once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._rest = ""  # the last line, while it is incomplete
        self.length = 0  # number of characters read by any connection

    async def read(self, client: JobSubmissionClient, job: str) -> None:
        """Show the lines of the log that were not shown before, until the log ends."""
        position = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, self.length - position) :]
            position += len(text)
            self.length = max(self.length, position)
            *lines, self._rest = (self._rest + new).split("\n")
            for line in lines:
                self._show(line)
        if self._rest:
            self._show(self._rest)
            self._rest = ""
