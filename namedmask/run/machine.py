"""The number of threads that torch may use, and the peak memory of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from namedmask.config import Config


def threads_of(config: Config) -> int:
    """Return the number of threads that torch may use: `run.threads`, or one per core."""
    return config.run.threads or os.cpu_count() or 1


def use_threads(config: Config) -> None:
    """Set torch's number of threads from the config, if torch is imported.

    An import of torch for this alone would take seconds.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads_of(config))


def peak_rss_mb() -> int:
    """Return the peak resident memory of this process in MB (2**20 bytes); 0 if it is unknown.

    `ru_maxrss` would be wrong: a process inherits its value from the process that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)
