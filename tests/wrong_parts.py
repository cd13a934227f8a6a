"""Plug-ins that cannot be used, each in a way that plug-ins of people are wrong."""

from __future__ import annotations

import os
import signal
from typing import Any

NUMBER = 3


def nothing(config: Any) -> None:
    """A factory that forgot to return."""


def raises(config: Any) -> None:
    raise ZeroDivisionError("division by zero\nin line 2")


def no_library(config: Any) -> None:
    raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")


def no_module(config: Any) -> None:
    import no_such_module_at_all  # noqa: F401


def too_large(config: Any) -> None:
    raise MemoryError


def other_arguments() -> None:
    """A factory that does not take the config."""


def dies(config: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
