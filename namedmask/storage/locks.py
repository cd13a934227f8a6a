"""Locks that allow one writer per run folder: a file lock on disk, a lease on S3.

The operating system releases a file lock (`flock`) when its process ends, however the process ends.
On S3, the lock is an object that names its holder, and the holder renews it every `TTL_S / 4`
seconds by writing it again. If the lock was not renewed for `TTL_S` seconds by the server's clock,
it has expired. All writes of the lock are conditional, so that only one of two processes that find
an expired lock can acquire it. If the holder was a process of this machine and has ended, its lock
counts as expired at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from namedmask.errors import InputError, NamedMaskError
from namedmask.storage.place import Place
from namedmask.storage.s3 import S3Path, allow_writes, forbid_writes

TTL_S = 60.0
"""Seconds after which a lock on S3 expires unless its holder renews it."""


@contextmanager
def locked(path: Place) -> Iterator[None]:
    """Hold the lock file `path` during the block, and thereby the lock of its folder.

    Raises:
        InputError: another process holds the lock.
        OSError, NamedMaskError: the folder cannot be written.
    """
    with _flock(path) if isinstance(path, Path) else _leased(path):
        yield


@contextmanager
def _flock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise _in_use(path, lock.read().strip() or "unknown", "") from None
        except OSError as error:
            raise InputError(
                f"{path} cannot be locked: {error.strerror}. The file system has no locks, so two "
                "runs could write there at once. Set run.out to a local folder or to s3://."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _leased(path: S3Path) -> Iterator[None]:
    lease = _Lease(path)
    lease.acquire()
    done = threading.Event()
    renewer = threading.Thread(target=lease.renew_until, args=(done,), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        lease.release()


class _Lease:
    """One process's view of a lock object on S3."""

    def __init__(self, path: S3Path) -> None:
        self._path = path
        self._holder = {
            "process": f"{socket.gethostname()}:{os.getpid()}",
            "pid": os.getpid(),
            "machine": _machine(),
            "token": uuid.uuid4().hex,
        }
        self._tag: str | None = None
        self._written = 0

    def acquire(self) -> None:
        """Become the holder of the lock.

        Raises:
            InputError: another process holds the lock.
        """
        self._tag = self._path.create(self._content(held=True))
        if self._tag is None:
            lock = self._path.get()
            holder = _parsed(lock.data)
            if holder.get("held", True) and lock.age_s < TTL_S and not _is_dead(holder):
                raise _in_use(
                    self._path,
                    str(holder.get("process", "unknown")),
                    f"It renewed its lock {max(0.0, lock.age_s):.0f} s ago. A lock that is not "
                    f"renewed for {TTL_S:.0f} s expires. ",
                )
            self._tag = self._path.replace_if(lock.tag, self._content(held=True))
        if self._tag is None:
            raise _in_use(self._path, "unknown (it started at the same time as this one)", "")

    def renew_until(self, done: threading.Event) -> None:
        """Renew the lock until `done` is set; if another process gets it, forbid further writes."""
        while not done.wait(TTL_S / 4):
            # After an outage, the next renewal shows whether another process has the lock.
            with suppress(NamedMaskError, OSError):
                self._renew()
            if self._tag is None:
                forbid_writes(
                    self._path.parent,
                    f"run folder {self._path.parent} has another writer, because this process did "
                    f"not renew its lock for {TTL_S:.0f} s. The process was suspended, or the "
                    "network failed. All committed work is kept. Run the same command again when "
                    "the other process has ended.",
                )
                return

    def release(self) -> None:
        """Mark the lock as free; if this write fails, the lock expires."""
        allow_writes(self._path.parent)
        if self._tag is not None:
            with suppress(NamedMaskError, OSError):
                self._path.replace_if(self._tag, self._content(held=False))

    def _renew(self) -> None:
        assert self._tag is not None
        self._tag = self._path.replace_if(self._tag, self._content(held=True))

    def _content(self, held: bool) -> bytes:
        # The counter changes the content of every write, because equal contents have equal tags.
        self._written += 1
        return json.dumps(self._holder | {"held": held, "written": self._written}).encode()


def _in_use(path: Place, holder: str, expiry: str) -> InputError:
    return InputError(
        f"run folder {path.parent} is in use by process {holder}. {expiry}"
        "Wait until that process ends, or set another run.out."
    )


def _parsed(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a lock, or {} if the lock is not in the format of this module."""
    with suppress(ValueError):
        holder = json.loads(data)
        if isinstance(holder, dict):
            return holder
    return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    pid = holder.get("pid")
    if holder.get("machine") != _machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _machine() -> str:
    """Return an id of this machine's current boot and of the PID namespace (container)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
