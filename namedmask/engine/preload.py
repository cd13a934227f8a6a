"""The modules that a fetching process needs. The fork server imports them once for all processes.

pyarrow imports pandas when it makes its first array, which takes a fifth of a second. Here that
import fails at once. pyarrow imports pandas again when it needs a data frame, and then succeeds.
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
        """Raise ModuleNotFoundError for pandas; leave other modules to the other finders."""
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


no_pandas = _NoPandas()
sys.meta_path.insert(0, no_pandas)
pa.array([0])
sys.meta_path.remove(no_pandas)
Image.preinit()  # loads the decoders of the common formats
