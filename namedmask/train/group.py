"""Groups of processes that share training steps: their parts of a batch, gradients, barrier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from namedmask.errors import ConfigError, InputError


@dataclass(frozen=True)
class Group:
    """The group of processes that share each step, as seen by the process with rank `rank`.

    By default a process trains alone. If `size` is above 1, torch.distributed must be initialized
    for exactly these ranks.
    """

    rank: int = 0
    size: int = 1
    sync_batch_norm: bool = False

    def slots(self, batch_size: int) -> range:
        """Return the slots of this process in a batch; each slot belongs to one process."""
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)


ALONE = Group()
"""The group of a single process."""


def require_sync_batch_norm(device: torch.device, section: str) -> None:
    """Check that batch norm statistics can be synchronized between processes on `device`.

    Raises:
        ConfigError: the device is a CPU.
    """
    if device.type == "cpu":
        raise ConfigError(
            f"{section}.sync_batch_norm is true, but torch cannot synchronize batch norm on a CPU. "
            f"Set it to false, set {section}.processes to 1, or set {section}.device to 'cuda'."
        )


def data_parallel(model: nn.Module, group: Group, start: int, device: torch.device) -> nn.Module:
    """Return the module that a step calls.

    It is `model` itself, or in a group of several processes a wrapper that averages gradients over
    the group. `start` is the number of steps in the checkpoint of this process.

    Raises:
        InputError: the processes found checkpoints with different numbers of steps.
    """
    if group.size == 1:
        return model
    starts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(group.size)]
    dist.all_gather(starts, torch.tensor([start], device=device))
    steps = [int(value) for value in starts]
    if len(set(steps)) > 1:
        raise InputError(
            f"the {group.size} processes of this training found checkpoints after {steps} steps; "
            "expected one checkpoint. Put run.out on storage that all machines of the cluster "
            "share."
        )
    # By default torch regroups the gradients after the first step. Three or more processes add
    # them in an order that depends on the groups, so a resumed training would differ. Looking for
    # unused parameters turns the regrouping off. Only on a CPU are equal bits promised.
    return DistributedDataParallel(model, find_unused_parameters=device.type == "cpu")


def barrier(group: Group, device: torch.device) -> None:
    """Wait until all processes of the group have called this function.

    It is an all-reduce. Unlike torch's own barrier, it works without knowing each process's GPU.
    """
    if group.size > 1:
        token = torch.zeros(1, device=device)
        dist.all_reduce(token)
        token.item()
