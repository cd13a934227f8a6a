"""Processes that form a real group of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from namedmask.train.group import Group


def in_group(rank: int, size: int, meeting: Path, work: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
    work(*args[:1], Group(rank, size), *args[1:])
    distributed.destroy_process_group()


def run_group(
    processes: ForkServerContext, size: int, work: Callable[..., None], folder: Path, *args: Any
) -> list[int | None]:
    """Return the exit codes of `size` processes that ran `work` as one group."""
    folder.mkdir(exist_ok=True)
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    started: list[BaseProcess] = [
        processes.Process(target=in_group, args=(rank, size, meeting, work, folder, *args))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]
