"""What this process may use of the machine: threads, and the memory it has taken."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from namedmask.config import Config


def threads_of(config: Config) -> int:
    """Return how many threads torch may use."""
    return config.run.threads or os.cpu_count() or 1


def use_threads(config: Config) -> None:
    """Let torch use as many threads as the config says, where it is loaded: that takes seconds."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads_of(config))


def peak_rss_mb() -> int:
    """Return the most memory that this process has held, MB; 0 where the system does not tell.

    Not `ru_maxrss`: a process inherits that from whoever started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)
