"""Run code as a user for whom permissions count, also where the tests run as root."""

from __future__ import annotations

import subprocess
import sys

PRELUDE = """
import ctypes, os
if os.geteuid() == 0:  # root without capabilities may do what the owner of a file may do
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
"""


def run(code: str) -> str:
    """Return what `code` prints in a process of its own, without the privileges of root."""
    command = [sys.executable, "-c", PRELUDE + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
