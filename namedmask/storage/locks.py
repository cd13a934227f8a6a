"""One writer at a time: the system's lock on a disk, a lease on S3.

A flock goes with its process, however that ends. On S3 the lock is an object that says who holds it
and is written again every `TTL_S / 4`; one that was not for `TTL_S` is void, by the server's clock.
Each of its writes has a condition, so that of two who find it void one gets it. A holder whose
process is gone from the same machine is found out at once.
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


@contextmanager
def locked(path: Place) -> Iterator[None]:
    """Hold the lock of the folder that `path` lies in, for as long as the block lasts.

    Raises:
        InputError: another process holds it.
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
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _leased(path: S3Path) -> Iterator[None]:
    lease = _Lease(path)
    lease.take()
    done = threading.Event()
    renewer = threading.Thread(target=lease.renew_until, args=(done,), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        lease.leave()


class _Lease:
    """A lock object, as one holder sees it."""

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

    def take(self) -> None:
        """Become the holder; raise InputError while somebody else is."""
        self._tag = self._path.create(self._note(held=True))
        if self._tag is None:
            seen = self._path.look()
            holder = _read(seen.data)
            if holder.get("held", True) and seen.age_s < TTL_S and not _is_dead(holder):
                raise _in_use(
                    self._path,
                    str(holder.get("process", "unknown")),
                    f"It was there {max(0.0, seen.age_s):.0f} s ago; a lock that was not renewed "
                    f"for {TTL_S:.0f} s is void. ",
                )
            self._tag = self._path.replace_if(seen.tag, self._note(held=True))
        if self._tag is None:
            raise _in_use(self._path, "another that began at the same time", "")

    def renew_until(self, done: threading.Event) -> None:
        """Stay the holder until `done`; once somebody else is, let writes to the folder fail."""
        while not done.wait(TTL_S / 4):
            # an outage passes, or the lock runs out: then the next renewal finds who has it
            with suppress(NamedMaskError, OSError):
                self._renew()
            if self._tag is None:
                forbid_writes(
                    self._path.parent,
                    f"run folder {self._path.parent} has another writer: this process did not "
                    f"renew its lock for {TTL_S:.0f} s, since it or the network stood still. What "
                    "is committed is kept; run the same command again once the other has ended.",
                )
                return

    def leave(self) -> None:
        """Say that nobody holds it; unsaid, it runs out."""
        allow_writes(self._path.parent)
        if self._tag is not None:
            with suppress(NamedMaskError, OSError):
                self._path.replace_if(self._tag, self._note(held=False))

    def _renew(self) -> None:
        assert self._tag is not None
        self._tag = self._path.replace_if(self._tag, self._note(held=True))

    def _note(self, held: bool) -> bytes:
        # never the same twice: the tag is that of the content
        self._written += 1
        return json.dumps(self._holder | {"held": held, "written": self._written}).encode()


def _in_use(path: Place, holder: str, more: str) -> InputError:
    return InputError(
        f"run folder {path.parent} is in use by process {holder}. {more}"
        "Wait until it ends, or give another run.out."
    )


def _read(data: bytes) -> dict[str, Any]:
    """Return what a lock says; nothing where that is not ours."""
    with suppress(ValueError):
        holder = json.loads(data)
        if isinstance(holder, dict):
            return holder
    return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine and is no more."""
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
    """Return what tells this machine since its start, and this container's numbers of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
