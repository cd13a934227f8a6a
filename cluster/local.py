"""A cluster on one machine that grows and shrinks like a cluster in a cloud.

    python -m cluster.local --max-workers 3

The command runs until Ctrl-C. It writes shell commands to stdout, with which another terminal uses
the cluster. The nodes are processes of this machine, which Ray's own autoscaler starts and ends
through its test provider. Nodes join when a run needs more than the cluster has, and leave when
they are idle. The cluster is meant for trials and tests. All nodes share the cores of this machine,
so more nodes do not make a run faster.

`ray.cluster_utils.AutoscalingCluster` does the same, but it needs a file that Ray's wheel does not
contain, and it ends every other Ray on this machine when it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Class of Ray's test provider, whose nodes are processes."""

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Node id of the head in the test provider."""

START_S = 120.0
"""Timeout of the start of a head, in seconds."""

STOP_S = 20.0
"""Seconds after which a head that does not end by itself is killed."""


@dataclass(frozen=True)
class Shape:
    """The size and the ports of a local cluster.

    A head with 0 CPUs runs only drivers and actors that need no CPU. Nodes that are idle for
    `idle_s` seconds leave.
    """

    head_cpus: int = 0
    max_workers: int = 3
    worker_cpus: int = 2
    idle_s: float = 20.0
    object_store_mb: int = 200
    port: int = 6379
    dashboard_port: int = 8265
    client_port: int = 10001


@dataclass(frozen=True)
class Head:
    """The head of a running cluster: the address of Ray, the url of its dashboard, its token."""

    address: str
    dashboard: str
    token: str

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables that a program needs to use the cluster."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextmanager
def cluster(shape: Shape, environment: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a cluster, yield its head, and end the cluster when the block ends.

    `environment` is added to the environment of all processes of the cluster. Processes of other
    clusters are not affected.

    Raises:
        RuntimeError: the cluster does not start (the message contains Ray's log), or another
            program uses the port of its dashboard.
    """
    head = Head(_address(shape), f"http://127.0.0.1:{shape.dashboard_port}", secrets.token_hex(32))
    variables = _environment(shape, head.token) | dict(environment or {})
    # a short path, since the paths of Ray's sockets may have at most 107 characters
    with tempfile.TemporaryDirectory(prefix="nm-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        process = _begin(shape, folder, variables)
        try:
            if not _answers(head, process):  # a busy machine needs more than Ray's 30 s
                _end(process)
                process = _begin(shape, folder, variables)
                if not _answers(head, process):
                    log = (folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"no Ray answers at {head.dashboard}; its log:\n{log}")
            yield head
        finally:
            _end(process)


def _begin(shape: Shape, folder: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            _command(shape, folder), env=variables, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip


def _command(shape: Shape, folder: Path) -> list[str]:
    words = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        "--disable-usage-stats",
        f"--port={shape.port}", f"--dashboard-port={shape.dashboard_port}",
        f"--ray-client-server-port={shape.client_port}", "--dashboard-agent-listen-port=0",
        f"--num-cpus={shape.head_cpus}", f"--object-store-memory={shape.object_store_mb << 20}",
        f"--temp-dir={folder / 'ray'}",
    ]  # fmt: skip
    if shape.max_workers:
        path = folder / "cluster.yaml"
        path.write_text(json.dumps(_autoscaling(shape)))  # JSON is YAML
        words.append(f"--autoscaling-config={path}")
    return words


def _address(shape: Shape) -> str:
    """Return the address at which the head listens, as Ray itself would choose it.

    Ray's own function cannot be used, because it imports ray, and ray reads the token when it is
    imported.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("8.8.8.8", 80))  # sends nothing
        return f"{probe.getsockname()[0]}:{shape.port}"


def _autoscaling(shape: Shape) -> dict[str, Any]:
    worker = {"CPU": shape.worker_cpus, "object_store_memory": shape.object_store_mb << 20}
    return {
        "cluster_name": "local",
        "max_workers": shape.max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": shape.idle_s / 60,
        "provider": {
            # named by its module, because the name `fake_multinode` would need the missing file
            "type": "external", "module": PROVIDER, "launch_multiple": True,
            "head_node_id": HEAD_ID, "gcs_address": _address(shape),
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {
                "resources": {"CPU": shape.head_cpus}, "node_config": {}, "max_workers": 0,
            },
            "worker": {
                "resources": worker, "node_config": {}, "min_workers": 0,
                "max_workers": shape.max_workers,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {}, "file_mounts": {}, "cluster_synced_files": [],
        "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip


def _environment(shape: Shape, token: str) -> dict[str, str]:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # jobs are started with `python -m ...`, which must be this Python
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
    environment.pop("RAY_ADDRESS", None)
    if shape.max_workers:
        environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",  # as with `ray up` and KubeRay
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
    return environment


def _answers(head: Head, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the head answers; return False if it ends or takes longer than `START_S`."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/version", headers={"Authorization": f"Bearer {head.token}"}
    )
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return True
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"another program answers at {head.dashboard}: {error}") from error
        except OSError:
            time.sleep(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head, which ends its processes, and then kill any process left in its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for pid in _session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _session(leader: int) -> list[int]:
    """Return the ids of the processes in a session; a process group would lack Ray's workers."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                pids.append(int(stat.parent.name))
    return pids


def leave_when_terminated() -> None:
    """Let SIGTERM raise SystemExit, so that `cluster` can end its processes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a cluster until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local")
    for name, default in vars(Shape()).items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"default {default}")
    shape = Shape(**vars(parser.parse_args(arguments)))
    leave_when_terminated()
    with cluster(shape) as head:
        lines = [f"export {name}={value}" for name, value in head.variables.items()]
        sys.stdout.write(
            "\n".join(lines) + f"\n# namedmask submit RUN.toml --address {head.dashboard}\n"
        )
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
