"""Category names in, semantic segmenter out.

The names in `__all__` are the public API. Each of them is imported on first use, so that
`import namedmask` loads neither torch nor any other slow module.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from namedmask.archive.store import Archive
    from namedmask.bilateral import bilateral_solver
    from namedmask.categories import CategorySet, load_category_set
    from namedmask.config import Config
    from namedmask.errors import NamedMaskError
    from namedmask.images.overlay import overlay
    from namedmask.report.run_report import write_report
    from namedmask.segmenter.checkpoint import load_checkpoint
    from namedmask.segmenter.predict import predict_labels
    from namedmask.verbs.predict import predict_files

__version__ = "0.1.0"

if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
    # Under a limit on address space (ulimit -v), Arrow's own allocator would reserve 1 GiB in each
    # process, and the system's allocator 64 MiB per thread. Child processes inherit the variables.
    import ctypes

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if "MALLOC_ARENA_MAX" not in os.environ:
        os.environ["MALLOC_ARENA_MAX"] = "2"
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option:  # the C library of some systems has no such option
            set_option(-8, 2)  # M_ARENA_MAX of this process, which has read the variable already

__all__ = [
    "Archive",
    "CategorySet",
    "Config",
    "NamedMaskError",
    "__version__",
    "bilateral_solver",
    "load_category_set",
    "load_checkpoint",
    "overlay",
    "predict_files",
    "predict_labels",
    "write_report",
]


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package that imports public names on first use.

    Args:
        package: the package's own `__name__`.
        homes: the module that defines each public name, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Archive": "archive.store",
        "CategorySet": "categories",
        "Config": "config",
        "NamedMaskError": "errors",
        "bilateral_solver": "bilateral",
        "load_category_set": "categories",
        "load_checkpoint": "segmenter.checkpoint",
        "overlay": "images.overlay",
        "predict_files": "verbs.predict",
        "predict_labels": "segmenter.predict",
        "write_report": "report.run_report",
    },
)
