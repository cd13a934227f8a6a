"""The cores and the memory that this process may use, and the peak memory that it has used.

All code that counts cores or memory asks `cores` and `memory_bytes`. A container, a batch system
or `taskset` often gives a process a part of a machine: by CPU affinity, by control groups (cgroups,
version 1 or 2), or by limits of the process. The numbers of the whole machine would start too many
processes and fill memory that is not there.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from namedmask.config import Config
from namedmask.images.limits import Limits

_ROOT = Path("/")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def threads_of(config: Config) -> int:
    """Return the number of threads that torch may use: `run.threads`, or one per core."""
    return config.run.threads or cores()


def use_threads(config: Config) -> None:
    """Set torch's number of threads from the config, if torch is imported.

    An import of torch for this alone would take seconds.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads_of(config))


def cores(root: Path = _ROOT) -> int:
    """Return the number of CPU cores that this process may use, at least 1.

    It is the smallest of the cores that the scheduler may choose (affinity: `taskset`, cpusets) and
    the CPU quotas of the process's cgroups and their parents; a part of a core counts as a core.
    `root` is the folder that holds the system's `proc` and `sys`.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    counts = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    for folder in _cgroups(root, "cpu"):
        quota, period = [*_numbers(folder / "cpu.max"), 0, 0][:2]
        if not period:
            quota = next(_numbers(folder / "cpu.cfs_quota_us"), 0)
            period = next(_numbers(folder / "cpu.cfs_period_us"), 0)
        if quota > 0 and period > 0:
            counts.append(-(-quota // period))
    return max(1, min(counts))


def memory_bytes(root: Path = _ROOT) -> int:
    """Return the number of bytes of memory that this process may use.

    It is the smallest of the machine's memory, the limits of the process's cgroups and their
    parents, and the process's limit of address space (`ulimit -v`). `root` is as for `cores`.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    limits += [] if space == resource.RLIM_INFINITY else [space]
    for folder in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limits += [limit for limit in _numbers(folder / name) if limit > 0]
    return min(limits)


def limits_of(config: Config, processes: int = 1) -> Limits:
    """Return the limits of one of `processes` processes that share this machine.

    They follow from `run.memory_gb`, or else from the memory that this process may use. A stage
    may hold encoded images of a 64th of its share and decoded images of a 16th, because the copies
    that libraries make, and the networks, need a multiple.
    """
    share = budget_bytes(config) // processes
    return Limits(
        config.fetch.max_pixels,
        decoded_bytes=_between(8 << 20, share // 16, 512 << 20),
        encoded_bytes=_between(1 << 20, share // 64, 256 << 20),
    )


def budget_bytes(config: Config) -> int:
    """Return the bytes of memory that all processes of the run on this machine may use."""
    return int(config.run.memory_gb * 2**30) or memory_bytes()


def _between(least: int, number: int, most: int) -> int:
    return max(least, min(number, most))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the cgroups that this process is in, from its own to the topmost.

    There is one chain per hierarchy that may limit the controller: that of version 2, and that of
    the controller in version 1. A container often sees a part of a hierarchy as the whole; then the
    path of its own group lies outside of what is mounted, and the mount itself is the group.
    """
    paths: dict[str, str] = {}  # by controller; version 2 has the empty name
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ")[:3]
        name = {"cgroup2": "", "cgroup": controller}.get(kind)
        if name not in paths or (name and name not in options.split(",")):
            continue
        top, point = (_ESCAPED.sub(_unescaped, field) for field in mount.split(" ")[3:5])
        folder = root / point.lstrip("/")
        inside = Path(os.path.relpath(paths[name], top))
        own = folder if ".." in inside.parts else folder / inside
        yield from (group for group in (own, *own.parents) if group.is_relative_to(folder))


def _unescaped(code: re.Match[str]) -> str:
    return chr(int(code[1], 8))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> Iterator[int]:
    """Yield the integers at the start of a file of limits; none if it has words (`max`) there."""
    for word in " ".join(_lines(path)).split():
        if not word.lstrip("-").isdecimal():
            return
        yield int(word)


def peak_rss_mb() -> int:
    """Return the peak resident memory of this process in MB (2**20 bytes); 0 if it is unknown.

    `ru_maxrss` would be wrong: a process inherits its value from the process that started it.
    """
    lines = _lines(Path("/proc/self/status"))
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)
