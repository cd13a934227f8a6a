"""The command `doctor`, which checks this machine and this installation."""

from __future__ import annotations

import importlib
import platform
import re
from importlib import metadata
from typing import Any

import namedmask
from namedmask.config import Config
from namedmask.run.machine import cores
from namedmask.run.stages import memory_plan

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "insightface", "opencv-python",
    "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu", "pyarrow",
    "numpy", "pillow", "pydantic", "typer",
)  # fmt: skip
"""Packages whose versions are reported if they are installed."""

MODULES = ("torch", "torchvision", "cv2", "onnxruntime", "insightface", "open_clip", "pyarrow")
"""Modules that are imported as a check; a failed import is reported as a problem."""


def diagnose() -> dict[str, Any]:
    """Return versions, machine, extras, CUDA devices and a list of `problems`, as plain values."""
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "namedmask": namedmask.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores(),
        **memory_plan(Config.of({"run": {"out": "runs/doctor"}}), 1),
        "versions": versions,
        "extras": {name: _missing_of(name) or "installed" for name in ("cpu", "gpu", "dev")},
        "problems": _problems(versions),
        **_accelerators(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing_of(extra: str) -> str:
    """Return `missing: a, b` for the packages of an extra that are not installed, else ""."""
    try:
        requirements = metadata.requires("namedmask") or []
    except metadata.PackageNotFoundError:
        return "unknown: namedmask runs from a folder that is not installed"
    names = [
        match.group(1)
        for requirement in requirements
        if re.search(rf"extra == ['\"]{extra}['\"]", requirement)
        and (match := re.match(r"([A-Za-z0-9._-]+)", requirement))
    ]
    missing = [name for name in names if _version(name) is None]
    return f"missing: {', '.join(missing)}" if missing else ""


def _problems(versions: dict[str, str]) -> list[str]:
    problems = [problem for name in MODULES if (problem := _import_problem(name))]
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions and not _onnxruntime_has_cuda():
        problems.append(
            "the package onnxruntime hides onnxruntime-gpu. Run: pip install --force-reinstall "
            f"--no-deps onnxruntime-gpu=={versions['onnxruntime-gpu']}"
        )
    return problems


def _import_problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        hint = ""
        if module == "cv2" and "libGL" in str(error):
            hint = (
                ". The desktop build of OpenCV hides the headless build. Run: pip install "
                "--force-reinstall --no-deps "
                f"opencv-python-headless=={_version('opencv-python') or ''}"
            )
        return f"import {module} fails: {error}{hint}"
    return ""


def _onnxruntime_providers() -> list[str]:
    try:
        import onnxruntime
    except (ImportError, OSError):
        return []
    return list(onnxruntime.get_available_providers())


def _onnxruntime_has_cuda() -> bool:
    return "CUDAExecutionProvider" in _onnxruntime_providers()


def _accelerators() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError):
        return {"cuda": [], "onnxruntime_providers": _onnxruntime_providers()}
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cuda": devices if torch.cuda.is_available() else [],
        "onnxruntime_providers": _onnxruntime_providers(),
    }
