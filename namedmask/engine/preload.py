"""What a process that fetches needs, and no more: imported first, by the server of such processes.

pyarrow looks for pandas as soon as it makes an array, which takes a fifth of a second; here it is
shown none. Who asks pyarrow for a data frame later gets one: it looks again then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa
from PIL import Image

from namedmask.engine import local
from namedmask.fetch import stage as fetch

__all__ = ["fetch", "local"]


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        """Raise ModuleNotFoundError for pandas; leave all else to others."""
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


hidden = _NoPandas()
sys.meta_path.insert(0, hidden)
pa.array([0])
sys.meta_path.remove(hidden)
Image.preinit()  # the decoders of the usual formats
