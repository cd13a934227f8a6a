"""The processes that share a training step: their places in a batch, their common start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from namedmask.errors import ConfigError, InputError


@dataclass(frozen=True)
class Group:
    """The processes that share each step, and which of them this one is; alone by default.

    With more than one, torch.distributed must be initialised for just these ranks.
    """

    rank: int = 0
    size: int = 1
    sync_batch_norm: bool = False

    def slots(self, batch_size: int) -> range:
        """Return this process's places in a batch; all processes together have each place once."""
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)


ALONE = Group()


def _refuse_cpu(device: torch.device, section: str) -> None:
    if device.type == "cpu":
        raise ConfigError(
            f"{section}.sync_batch_norm is true, but torch has no batch norm that several "
            f"processes share on a CPU. Set it to false, {section}.processes to 1, or "
            f"{section}.device to 'cuda'."
        )


def _share(model: nn.Module, group: Group, start: int, device: torch.device) -> nn.Module:
    """Return what the step calls: `model` itself, or one that averages gradients over a group."""
    if group.size == 1:
        return model
    starts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(group.size)]
    dist.all_gather(starts, torch.tensor([start], device=device))
    found = [int(one) for one in starts]
    if len(set(found)) > 1:
        raise InputError(
            f"the {group.size} processes of this training found checkpoints after {found} steps; "
            "expected the same file. Put run.out on storage that all machines of the cluster see."
        )
    # looking for unused parameters keeps it from regrouping gradients after its first step: three
    # and more processes add up in an order of the groups, and a resumed training would differ
    return DistributedDataParallel(model, find_unused_parameters=device.type == "cpu")


def _wait(group: Group, device: torch.device) -> None:
    """Wait until the whole group is here: a barrier that need not be told which GPU is whose."""
    if group.size > 1:
        token = torch.zeros(1, device=device)
        dist.all_reduce(token)
        token.item()
