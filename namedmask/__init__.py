"""Category names in, semantic segmenter out.

The names below are the public ones; each is imported when first used, so that `import namedmask`
loads neither torch nor anything else that is slow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from namedmask.archive import Archive
    from namedmask.bilateral import bilateral_solver
    from namedmask.categories import CategorySet, load_category_set
    from namedmask.config import Config
    from namedmask.errors import NamedMaskError
    from namedmask.evaluate import predict_labels
    from namedmask.predict import overlay, predict_files
    from namedmask.report import write_report
    from namedmask.segmenter import load_checkpoint

__version__ = "0.1.0"

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

_HOMES = {
    "Archive": "archive",
    "CategorySet": "categories",
    "Config": "config",
    "NamedMaskError": "errors",
    "bilateral_solver": "bilateral",
    "load_category_set": "categories",
    "load_checkpoint": "segmenter",
    "overlay": "predict",
    "predict_files": "predict",
    "predict_labels": "evaluate",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'namedmask' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"namedmask.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
