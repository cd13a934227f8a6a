"""A run handed to a cluster elsewhere: its verbs as one job, followed, with the job's exit code.

The job is a shell command, `python -m ray_jobs curate ... && python -m ray_jobs refine ...`, so
that a verb that fails ends it with that verb's code. Submitted again, verbs that are finished
say so at once and the one that is not goes on from what is in `run.out`.

What travels is a temporary folder with the run file, `ray_jobs`, and the files of `working_dir`
where one is given; so paths in the run file are paths on the cluster's machines, or in that folder.
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

CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
API_ADDRESS = "RAY_API_SERVER_ADDRESS"
MOST_BYTES = 100_000_000
ANSWER_S = 10.0
POLL_S = 0.5
TRIES = 5
"""Times in a row that a broken connection to the log is taken up again."""


@dataclass(frozen=True)
class Submission:
    """What is handed to a cluster."""

    run_file: Path
    verbs: Sequence[str] = ()
    overrides: Sequence[str] = ()
    working_dir: Path | None = None
    ship_package: bool = False
    submission_id: str = ""


def submit(submission: Submission, address: str) -> str:
    """Return the submission id of the job that runs these verbs on the cluster at `address`.

    Without verbs it is the whole road, short of the verbs that do not apply.

    Raises:
        InputError: the run file cannot be used there, or the cluster refuses the job.
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
    """Raise InputError where `run.out` would lie in the job's own folder, which Ray deletes."""
    if not out.startswith(("/", "s3:/")):
        raise InputError(
            f"run.out '{out}' is a relative path, which on the cluster lies in a folder that goes "
            "with the job. Give an absolute path that all its machines see, or s3://bucket/folder."
        )


def command(run_file: str, verbs: Sequence[str], overrides: Sequence[str]) -> str:
    """Return the shell command that runs the verbs one after the other, until one fails."""
    settings = [part for one in (*overrides, "ray.address=auto") for part in ("--set", one)]
    lines = []
    for verb in verbs:
        if verb not in VERBS:
            raise unknown_name("verb", verb, VERBS)
        words = ["python", "-m", "ray_jobs", verb, "--config", run_file, *settings]
        lines.append(shlex.join(words))
    return " && ".join(lines)


def pack(submission: Submission, folder: Path) -> None:
    """Fill `folder` with all that the job needs and the cluster has not.

    Raises:
        InputError: `working_dir` is no folder, or too large to be sent.
    """
    source = submission.working_dir
    if source is not None:
        if not source.is_dir():
            raise InputError(f"--working-dir {source} is no folder.")
        ignored = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(source, folder, ignore=_small_enough(source, ignored), dirs_exist_ok=True)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        _folder_of("ray_jobs"), folder / "ray_jobs", ignore=no_caches, dirs_exist_ok=True
    )
    shutil.copy(submission.run_file, folder / submission.run_file.name)


def _small_enough(source: Path, ignored: Callable[..., set[str]]) -> Callable[..., set[str]]:
    """Return `ignored`, which `copytree` asks about each folder, that counts what it lets through.

    So a folder that is far too large is refused before its files are copied.
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
        raise NamedMaskError(f"package {package} is not installed; install namedmask again.")
    return Path(spec.origin).parent


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the cluster whose dashboard is at `address`.

    Raises:
        InputError: nothing answers there, something else does, or it wants another token.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"--address '{address}' is not that of a Ray dashboard; expected something like "
            "http://head:8265."
        )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with _explained(address), _preferred(address):
        # the client itself would wait for minutes on a machine that does not answer
        socket.create_connection((parts.hostname, port), ANSWER_S).close()
        return JobSubmissionClient(address)


@contextmanager
def _preferred(address: str) -> Iterator[None]:
    """Have the client use `address` for the block, which RAY_ADDRESS would else overrule."""
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
    """Turn the errors of Ray's client in the block into ones that name the way out."""
    try:
        yield
    except NamedMaskError:
        raise
    except AuthenticationError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the cluster at {address} wants its token ({reason}). Set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN to the cluster's token, or put it into ~/.ray/auth_token; on its head "
            "'ray get-auth-token' shows it."
        ) from error
    except (ConnectionError, socket.gaierror, TimeoutError) as error:
        raise InputError(
            f"nothing answers at {address}: {error}. Expected the dashboard of a running Ray, by "
            "default port 8265 of its head; from outside, forward it: 'ray dashboard cluster.yaml' "
            "or 'kubectl port-forward service/HEAD 8265'."
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, aiohttp.ClientError) as error:
        raise InputError(
            f"what answers at {address} does not do its part: {_last_line(str(error))}"
        ) from error


def _last_line(text: str) -> str:
    """Return the last line with words: a server's error brings its traceback along."""
    return [line for line in text.splitlines() if line.strip(" .")][-1] if text else "no reason"


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> None:
    """Hand each line of a job's log to `show` until the job has ended well.

    Raises:
        JobError: it ended otherwise, with its exit code; or Ctrl-C, and the job goes on.
    """
    address = client.get_address()
    try:
        with _explained(address), _interrupts() as seen:
            _follow_log(client, job, show, seen)
            while not (info := client.get_job_info(job)).status.is_terminal():
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise RayJobError(
            f"followed no longer; job {job} goes on. Follow it again with 'ray job logs --address "
            f"{address} --follow {job}', end it with 'ray job stop --address {address} {job}'.",
            130,
        ) from None
    if info.status == JobStatus.STOPPED:
        raise RayJobError(f"job {job} was stopped; what is finished is kept in run.out.", 130)
    if info.status == JobStatus.FAILED:
        raise _failure(job, info.driver_exit_code, info.message or "")


def _failure(job: str, code: int | None, message: str) -> RayJobError:
    """Return the error for a failed job; `code` is None where it failed before its command ran."""
    if not code:
        return RayJobError(f"job {job} failed: {message}", 1)
    return RayJobError(
        f"job {job} ended with exit code {code}; its own words are above. What is finished is kept "
        "in run.out: submit the same again once the cause is mended.",
        code if code > 0 else 128 - code,  # killed by a signal, as a shell tells it
    )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yield a list that grows with each Ctrl-C, which is a KeyboardInterrupt as ever.

    asyncio's own handler cancels instead; what a connection raises on the way out then looks like a
    broken one, to be taken up again, and the Ctrl-C is lost.
    """
    seen: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _follow_log(
    client: JobSubmissionClient,
    job: str,
    show: Callable[[str], None],
    interrupts: Sequence[int] = (),
) -> None:
    """Hand on the lines of a log until it ends; a broken connection is taken up where it was."""
    log = _Log(show)
    tries = 0
    while True:
        known = log.seen
        try:
            asyncio.run(log.read(client, job))
            return
        except (RuntimeError, OSError, aiohttp.ClientError):
            if interrupts:
                raise KeyboardInterrupt from None
            tries = 1 if log.seen > known else tries + 1
            if tries > TRIES:
                raise
            time.sleep(POLL_S * 2**tries)


class _Log:
    """A log read from its start, as often as need be, of which each line is shown once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._rest = ""
        self.seen = 0

    async def read(self, client: JobSubmissionClient, job: str) -> None:
        """Show what is new in the log, until it ends."""
        at = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, self.seen - at) :]
            at += len(text)
            self.seen = max(self.seen, at)
            *lines, self._rest = (self._rest + new).split("\n")
            for line in lines:
                self._show(line)
        if self._rest:
            self._show(self._rest)
            self._rest = ""
