"""The cores and the memory that a process may use, of true and of made-up machines."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from namedmask.config import Config
from namedmask.engine.processes import process_count
from namedmask.run.machine import cores, memory_bytes, threads_of
from namedmask.verbs.doctor import diagnose

HERE = len(os.sched_getaffinity(0))
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
UNLIMITED = 9223372036854771712  # what version 1 shows for no limit
ASK = """
import json
from namedmask.config import Config
from namedmask.engine.local import process_count
from namedmask.run.machine import cores, memory_bytes, threads_of
config = Config.of({"run": {"out": "x"}, "fetch": {"processes": 0}})
print(json.dumps([cores(), threads_of(config), process_count(config.fetch), memory_bytes()]))
"""


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """Write the parts of /proc and /sys that tell the limits of a process."""
    for name, text in {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": mounts,
        **files,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def mount(top: str, point: str, kind: str, options: str = "rw") -> str:
    return f"31 23 0:28 {top} {point} rw,relatime shared:9 - {kind} cgroup {options}\n"


V2 = mount("/", "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")
V1 = mount("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct") + mount(
    "/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"
)
OWN = "sys/fs/cgroup/a/b"

CORES = {
    "no cgroups": ("", "", {}, HERE),
    "no quota": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": "max 100000\n"}, HERE),
    "one core": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": "100000 100000\n"}, 1),
    "a part of a core": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": "1000 100000\n"}, 1),
    "another period": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": "20000 20000\n"}, 1),
    "quota above the machine": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": "9900000 100000\n"}, HERE),
    "a parent": ("0::/a/b\n", V2, {"sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
    "another group": ("0::/a/b\n", V2, {"sys/fs/cgroup/a/c/cpu.max": "50000 100000\n"}, HERE),
    "namespace": ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "own group mounted": (
        "0::/docker/x1\n", mount("/docker/x1", "/sys/fs/cgroup", "cgroup2"),
        {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1,
    ),
    "mounted elsewhere": (
        "0::/docker/x1\n", mount("/other", "/sys/fs/cgroup", "cgroup2"),
        {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1,
    ),
    "a space in the path": (
        "0::/a/b\n", mount("/", "/sys/fs/c\\040g", "cgroup2"),
        {"sys/fs/c g/a/cpu.max": "50000 100000\n"}, 1,
    ),
    "version 1": (
        "4:cpu,cpuacct:/a/b\n3:memory:/a\n", V1,
        {
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
        },
        1,
    ),
    "version 1 without quota": (
        "4:cpu,cpuacct:/a/b\n3:memory:/a\n", V1,
        {
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
        },
        HERE,
    ),
    "both versions": (
        "4:cpu,cpuacct:/\n0::/a\n",
        V1 + mount("/", "/sys/fs/cgroup/unified", "cgroup2"),
        {"sys/fs/cgroup/unified/a/cpu.max": "50000 100000\n"},
        1,
    ),
    "noise": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": "many few\n"}, HERE),
    "empty": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": ""}, HERE),
    "period of zero": ("0::/a/b\n", V2, {f"{OWN}/cpu.max": "100 0\n"}, HERE),
}  # fmt: skip


@pytest.mark.parametrize("case", CORES.values(), ids=CORES)
def test_cores_are_those_of_affinity_and_quota(tmp_path: Path, case: tuple) -> None:
    *parts, expected = case
    assert cores(machine(tmp_path, *parts)) == expected


MEMORIES = {
    "no cgroups": ("", "", {}, MEMORY),
    "no limit": ("0::/a/b\n", V2, {f"{OWN}/memory.max": "max\n"}, MEMORY),
    "own": ("0::/a/b\n", V2, {f"{OWN}/memory.max": "123456789\n"}, 123456789),
    "a parent": (
        "0::/a/b\n", V2,
        {f"{OWN}/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "123456789\n"}, 123456789,
    ),
    "throttled before the limit": (
        "0::/a/b\n", V2,
        {f"{OWN}/memory.max": "200000000\n", f"{OWN}/memory.high": "123456789\n"}, 123456789,
    ),
    "above the machine": ("0::/a/b\n", V2, {f"{OWN}/memory.max": f"{UNLIMITED}\n"}, MEMORY),
    "version 1": (
        "4:cpu,cpuacct:/a/b\n3:memory:/a\n", V1,
        {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "123456789\n"}, 123456789,
    ),
    "version 1, a parent": (
        "4:cpu,cpuacct:/a/b\n3:memory:/a/b\n", V1,
        {
            "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{UNLIMITED}\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "123456789\n",
        },
        123456789,
    ),
    "version 1 without limit": (
        "4:cpu,cpuacct:/a/b\n3:memory:/a\n", V1,
        {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{UNLIMITED}\n"}, MEMORY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MEMORIES.values(), ids=MEMORIES)
def test_memory_is_the_smallest_limit(tmp_path: Path, case: tuple) -> None:
    *parts, expected = case
    assert memory_bytes(machine(tmp_path, *parts)) == expected


@pytest.mark.slow
def test_cores_and_memory_of_generated_machines_follow_from_the_smallest_limit(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    for number in range(400):
        names = [f"g{rng.integers(100)}" for _ in range(rng.integers(0, 5))]
        point, counts, limits, files = "sys/fs/cgroup", [HERE], [MEMORY], {}
        version = rng.integers(1, 3)
        for depth in range(len(names) + 1):
            quota, period = int(rng.integers(1, 500_000)), int(rng.choice([1000, 100_000]))
            limit = int(rng.integers(1 << 20, 2 * MEMORY))
            if rng.random() < 0.5:
                counts.append(-(-quota // period))
            else:
                quota = -1
            limits.append(limit)
            inside = "/".join(names[:depth])
            if version == 2:
                quota_text = f"{quota if quota > 0 else 'max'} {period}\n"
                files[f"{point}/{inside}/cpu.max"] = quota_text
                files[f"{point}/{inside}/memory.max"] = f"{limit}\n"
            else:
                files[f"{point}/cpu,cpuacct/{inside}/cpu.cfs_quota_us"] = f"{quota}\n"
                files[f"{point}/cpu,cpuacct/{inside}/cpu.cfs_period_us"] = f"{period}\n"
                files[f"{point}/memory/{inside}/memory.limit_in_bytes"] = f"{limit}\n"
        path = "/" + "/".join(names)
        own = f"0::{path}\n" if version == 2 else f"2:cpu,cpuacct:{path}\n3:memory:{path}\n"
        root = machine(tmp_path / f"{number}", own, V2 if version == 2 else V1, files)
        assert (cores(root), memory_bytes(root)) == (min(counts), min(limits)), (own, files)


def asked(before: list[str], **options: object) -> list[int]:
    """Return cores, threads, fetching processes and memory, as a process of its own sees them."""
    done = subprocess.run(
        [*before, sys.executable, "-c", ASK], capture_output=True, text=True, check=True, **options
    )  # type: ignore[call-overload]
    answer: list[int] = json.loads(done.stdout)
    return answer


def test_cores_under_taskset_are_one_everywhere() -> None:
    one = str(min(os.sched_getaffinity(0)))
    assert asked(["taskset", "-c", one])[:3] == [1, 1, 1]


def test_memory_under_a_limit_of_address_space_is_the_limit() -> None:
    limit = 3 << 30
    free = resource.RLIM_INFINITY
    found = asked([], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, free)))
    assert found[3] == min(limit, memory_bytes())


@pytest.fixture
def real_group() -> Iterator[dict[str, Path]]:
    """Folders of a cgroup of this machine, by controller, in which a process may be put."""
    made = {}
    try:
        for name in ("cpu", "memory"):
            made[name] = Path("/sys/fs/cgroup", name, f"namedmask-{os.getpid()}")
            made[name].mkdir()
            assert (made[name] / "cgroup.procs").exists()
    except (OSError, AssertionError):
        pytest.skip("needs cgroups of version 1 that this process may make")
    yield made
    for folder in made.values():
        folder.rmdir()


def test_cores_and_memory_in_a_real_cgroup_are_its_limits(real_group: dict[str, Path]) -> None:
    (real_group["cpu"] / "cpu.cfs_quota_us").write_text("70000")
    (real_group["cpu"] / "cpu.cfs_period_us").write_text("100000")
    (real_group["memory"] / "memory.limit_in_bytes").write_text(f"{1 << 30}")

    def join() -> None:
        for folder in real_group.values():
            (folder / "cgroup.procs").write_text("0")

    assert asked([], preexec_fn=join) == [1, 1, 1, 1 << 30]


def test_all_counts_of_this_process_are_equal() -> None:
    config = Config.of({"run": {"out": "x"}, "fetch": {"processes": 0}})
    found = diagnose()
    assert found["cores"] == cores() == threads_of(config) == process_count(config.fetch)
    assert found["memory_gb"] == round(memory_bytes() / 2**30, 1)


def test_cores_and_memory_are_counted_in_one_place_only() -> None:
    package = Path(__file__).parents[2]
    words = ("cpu_count", "SC_PHYS_PAGES", "process_cpu_count")
    for folder in ("namedmask", "bench", "ray_jobs"):
        for path in (package / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert path.name == "machine.py" or not any(word in text for word in words), path


def test_limit_of_a_stage_below_a_lower_hard_limit_keeps_that() -> None:
    code = (
        "import resource\n"
        "from namedmask.engine.on_ray.isolated import limit_memory\n"
        "limit_memory(1 << 40)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    )
    limits = ["bash", "-c", f'ulimit -d {4 << 20}; exec "$@"', "_"]
    done = subprocess.run(
        [*limits, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == 4 << 30
