"""The connection to Ray, and checks that the cluster has or can get the resources of a run."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray.autoscaler.v2.utils import is_autoscaler_v2

from namedmask.config import Config
from namedmask.errors import ClusterTooSmallError, InputError
from namedmask.run.machine import cores
from namedmask.run.stages import checking_stages
from namedmask.storage import is_s3
from namedmask.storage.place import ensure_writable
from namedmask.weights.catalog import known_weights

SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket in bytes."""

LOG_LEVELS = {
    "ray.data": logging.CRITICAL,  # its errors are also raised
    "ray.train": logging.WARNING,
    "ray.tune": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # notes that Ray's progress bars are off
    "ray._private.authentication": logging.ERROR,  # notes that a new Ray uses tokens
}
"""Log levels by logger of Ray. They hide messages that do not help a user."""


@dataclass(frozen=True)
class Pool:
    """A pool of actors: their class, its arguments, their number, and the resources of each."""

    name: str
    worker: type
    arguments: Mapping[str, Any]
    actors: tuple[int, int] = (1, 1)  # smallest and largest number
    num_cpus: float = 0.0
    num_gpus: float = 0.0


@contextmanager
def session(config: Config) -> Iterator[None]:
    """Connect to Ray until the block ends: at `ray.address`, at RAY_ADDRESS, or to a new Ray here.

    Raises:
        InputError: nothing answers at the address.
    """
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    # Ray's core would write a meaningless error about Ray Data's own actors to the terminal
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    settings = config.ray
    try:
        if settings.address or os.environ.get("RAY_ADDRESS"):
            ray.init(settings.address or None, log_to_driver=False, logging_level=logging.WARNING)
        else:
            refuse_unusable(Path(get_default_ray_temp_dir()))
            if not os.access(os.path.expanduser("~/"), os.W_OK):
                # Ray would keep its token in the home folder; this Ray ends with this process
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            ray.init(
                "local",
                num_cpus=settings.num_cpus or max(cores(), cpus_needed(config)),
                object_store_memory=settings.object_store_mb << 20 or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except (ConnectionError, ValueError, ray.exceptions.RaySystemError) as error:
        raise InputError(
            f"ray.address '{settings.address}': no Ray can be reached there: {error}. Start Ray "
            "with 'ray start --head', correct the address, or leave it empty. For a Ray with "
            "token authentication, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here too."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def refuse_unusable(folder: Path) -> None:
    """Raise unless a new Ray can put its files and sockets below a folder.

    Raises:
        InputError: it cannot be written, or the system does not allow so long paths of sockets.
    """
    socket = folder / f"session_2000-01-01_00-00-00_000000_{2**22}" / "sockets/plasma_store"
    length = len(os.fsencode(socket))
    if length > SOCKET_PATH_BYTES:
        raise InputError(
            f"Ray's folder for temporary files is {folder}, and the paths of its sockets there "
            f"would have {length} bytes; the system allows {SOCKET_PATH_BYTES}. Set RAY_TMPDIR to "
            "a shorter folder, such as /tmp, or use --local."
        )
    ensure_writable(folder, "RAY_TMPDIR, or use --local")


def cpus_needed(config: Config) -> int:
    """Return the number of CPUs that a run needs at the same time, including a graph's reader."""
    stages_of_graphs = (("fetch", "embed"), checking_stages(config))
    graphs = [sum(_cpus(config, name) for name in stages) for stages in stages_of_graphs]
    training = config.train.processes * (1 + max(1, config.train.sample_processes))
    return int(-(-max(*graphs, training, config.experts.num_cpus, 1) // 1)) + 1


def _cpus(config: Config, stage: str) -> float:
    section = getattr(config, stage)
    cpus: float = section.actors[0] * section.num_cpus
    return cpus


def refuse_too_small(pools: Sequence[Pool], reader_cpus: float) -> None:
    """Raise ClusterTooSmallError unless all pools fit into the cluster with their fewest actors."""
    listed = ", ".join(
        f"{pool.name} {pool.actors[0]} × {pool.num_cpus:g} CPU"
        + (f" {pool.num_gpus:g} GPU" if pool.num_gpus else "")
        for pool in pools
    )
    wanted = {
        "CPU": reader_cpus + sum(pool.actors[0] * pool.num_cpus for pool in pools),
        "GPU": sum(pool.actors[0] * pool.num_gpus for pool in pools),
    }
    way_out = "Lower actors, num_cpus or num_gpus of these sections"
    refuse_to_stall(f"the graph ({listed}, reading {reader_cpus:g} CPU)", wanted, way_out)


def refuse_to_stall(work: str, wanted: Mapping[str, float], way_out: str) -> None:
    """Raise ClusterTooSmallError if the cluster can never provide resources at the same time.

    Ray itself would wait forever, without a message.

    Args:
        work: the work that needs the resources, as the subject of the message.
        wanted: the numbers of CPUs and GPUs, by `CPU` and `GPU`.
        way_out: the settings to change, as the beginning of a sentence of the message.
    """
    has, may = ray.cluster_resources(), may_grow_to()
    for kind, number in wanted.items():
        most = max(has.get(kind, 0.0), may.get(kind, 0.0))
        if number > most:
            raise ClusterTooSmallError(
                f"{work} needs {number:g} {kind} at once; the cluster has {has.get(kind, 0):g} and "
                f"may grow to {most:g}. {way_out}, or add nodes. For a Ray that the run "
                "itself starts, raise ray.num_cpus."
            )


def may_grow_to() -> dict[str, float]:
    """Return the largest resources of an autoscaling cluster, by kind; {} if it does not grow.

    Ray knows this limit only on some platforms. Clusters of `ray up` and KubeRay grow to a limit in
    their files, which Ray does not report, so the result is infinite. No work is refused on them,
    and a log line names the work that waits.
    """
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    if most is None and is_autoscaler_v2(fetch_from_server=True):
        return {"CPU": math.inf, "GPU": math.inf}
    return {kind: float(number) for kind, number in (most or {}).items()}


def with_absolute_paths(config: Config) -> Config:
    """Return the config with absolute paths of the weights for a training.

    Training processes start in other folders than this process. A name that `namedmask weights`
    knows stays a name, because each machine has its own cache.
    """
    weights = config.segmenter.backbone_weights
    if weights not in ("", "miniworld", *known_weights()):
        update = {"backbone_weights": str(Path(weights).absolute())}
        config = config.model_copy(update={"segmenter": config.segmenter.model_copy(update=update)})
    if config.train.start and not is_s3(config.train.start):
        update = {"start": str(Path(config.train.start).absolute())}
        config = config.model_copy(update={"train": config.train.model_copy(update=update)})
    return config
