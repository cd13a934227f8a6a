"""Failures of a run in one line: what an error means, and when too many rows have crashed."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping

from namedmask.errors import NamedMaskError, TooManyFailuresError
from namedmask.schema.status import CRASHED, OK, STATUSES

CRASHED_SHARE = 0.1
"""Share of the rows of a wave above which crashed rows are taken for a fault of the run."""

CRASHED_ROWS = 5
"""Number of crashed rows of a wave up to which they are taken for faults of the rows themselves."""

FIRST_ROWS = 10
"""Number of crashed rows of a wave, none of whose rows is ok so far, that are a fault of the run.

Each crash costs the start of a process, so that a whole wave of them would take hours."""

FEWEST_ROWS = 3
"""Number of rows of a wave from which on the crash of all of them is a fault of the run."""

LONGEST = 200
"""Largest number of characters of a message of Ray that is shown."""

DEEPEST = 20
"""Largest number of errors inside one another that are looked into."""

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|DefaultCPUAllocator|Cannot allocate memory|bad_alloc"
)
GPU_OUT_OF_MEMORY = re.compile(r"CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC")
LIBRARY = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")

LIBRARY_OWNERS = {
    "libGL": "opencv-python-headless, with: pip install --force-reinstall --no-deps "
    "opencv-python-headless (the desktop build of OpenCV needs libGL)",
    "libcud": "the NVIDIA driver, or the builds for the CPU",
    "libgomp": "libgomp1, with the system's package manager",
}
"""Package that brings a missing shared library, by the beginning of the library's name."""

RAY_ERRORS = {
    "OutOfMemoryError": "Ray ended a process because its machine ran out of memory. Lower the "
    "`actors` of the sections, batch_size or run.wave_rows.",
    "NodeDiedError": "a machine of the Ray cluster was lost.",
    "ActorDiedError": "a process of the Ray cluster died.",
    "ActorDiedUnexpectedlyError": "a process of the Ray cluster died.",
    "ActorUnavailableError": "a process of the Ray cluster does not answer.",
    "ActorUnschedulableError": "no machine of the Ray cluster can run a process of this run.",
    "TaskUnschedulableError": "no machine of the Ray cluster can run a process of this run.",
    "WorkerCrashedError": "a process of the Ray cluster died.",
    "LocalRayletDiedError": "the Ray of this machine ended.",
    "ObjectStoreFullError": "the object store of Ray is full. Raise ray.object_store_mb.",
    "OutOfDiskError": "the disk on which Ray keeps its objects is full. Free some space.",
    "RuntimeEnvSetupError": "Ray could not set up the environment of a process.",
    "ObjectLostError": "Ray lost data, because a machine or a process that held it was lost.",
    "OwnerDiedError": "Ray lost data, because a machine or a process that held it was lost.",
    "RpcError": "the connection to the Ray cluster broke.",
    "RaySystemError": "Ray itself failed.",
    "GetTimeoutError": "the Ray cluster does not answer.",
}
"""Meaning of the errors of Ray, by class name; Ray is not imported for it."""


def sentence_of(error: BaseException) -> str:
    """Return what an error of any kind means, in one line that ends with a full stop."""
    error = root_of(error)
    if isinstance(error, NamedMaskError):
        return str(error)
    for kinds, told in _MEANINGS:
        if isinstance(error, kinds):
            return _one_line(told(error))
    text = str(error)
    if GPU_OUT_OF_MEMORY.search(text):
        return "the GPU is out of memory. Lower batch_size, or end other programs on the GPU."
    if OUT_OF_MEMORY.search(text):
        return _memory(error)
    if _is_of_ray(error):
        names = [kind.__name__ for kind in type(error).__mro__]
        meaning = next((RAY_ERRORS[name] for name in names if name in RAY_ERRORS), "Ray failed.")
        says = f" Ray says: {last}." if (last := _last_line(text)) else ""
        return f"{meaning}{says} Finished work is kept; run the same command again."
    return _one_line(f"{type(error).__name__}: {_first_line(text) or 'no message'}")


def root_of(error: BaseException) -> BaseException:
    """Return the error that an error of Ray, or a group of errors, stands for."""
    for _ in range(DEEPEST):
        inner: object = None
        if isinstance(error, BaseExceptionGroup):
            inner = error.exceptions[0]
        elif _is_of_ray(error):
            inner = getattr(error, "cause", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def _is_of_ray(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] == "ray" for kind in type(error).__mro__)


def refuse_crashed(unit: str, rows: int, counts: Mapping[str, int]) -> None:
    """Raise if so many rows of a wave have crashed that the run is at fault, not the rows.

    Args:
        unit: name of the wave, which is not committed; "" if it is not known.
        rows: number of rows of the wave.
        counts: number of rows by status after the stages, of those that have passed them so far.

    Raises:
        TooManyFailuresError: more than `CRASHED_SHARE` and `CRASHED_ROWS` of the rows have crashed,
            or all of at least `FEWEST_ROWS` rows, or the first `FIRST_ROWS` and none is ok.
    """
    crashed = counts.get(CRASHED, 0)
    is_all = crashed == rows >= FEWEST_ROWS or (crashed >= FIRST_ROWS and not counts.get(OK))
    if is_all or (crashed > CRASHED_ROWS and crashed > CRASHED_SHARE * rows):
        wave = f"wave {unit}" if unit else "a wave"
        raise TooManyFailuresError(
            f"{crashed:,} of {rows:,} rows of {wave} crashed a stage or its process. So many "
            "mean that the run is at fault, and not the rows: a model, a plug-in, or the memory. "
            "Nothing of this wave is stored. Fix the cause and run the same command again."
        )


def refuse_none_ok(what: str, counts: Mapping[str, int], way_out: str) -> None:
    """Raise if there are rows, and none of them is ok.

    Args:
        what: the rows in the user's words, in the plural.
        counts: number of rows by status.
        way_out: the end of the message, a sentence.

    Raises:
        TooManyFailuresError: no row is ok; the message tells the commonest status.
    """
    failed = {status: count for status, count in counts.items() if count}
    if not failed or OK in failed:
        return
    status = max(failed, key=lambda status: failed[status])
    meaning = f": {STATUSES[status].meaning}" if status in STATUSES else ""
    raise TooManyFailuresError(
        f"none of {sum(failed.values()):,} {what} is ok; the commonest status is '{status}' "
        f"({failed[status]:,}{meaning}). {way_out}"
    )


def _memory(error: BaseException) -> str:
    return (
        "the memory is not enough. Lower batch_size or run.wave_rows, or give the process more "
        "memory."
    )


def _import(error: ImportError) -> str:
    if found := LIBRARY.search(str(error)):
        library = found[1]
        owner = next((own for start, own in LIBRARY_OWNERS.items() if library.startswith(start)),
                     "the system package that has it")  # fmt: skip
        return f"the shared library {library} is missing. Install {owner}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"module '{error.name}' is not installed. Install it, or put it on PYTHONPATH"
    return f"an import failed: {_first_line(str(error))}"


def _file(error: OSError) -> str:
    if error.errno in (errno.ENOMEM,):
        return _memory(error)
    problem = error.strerror or _first_line(str(error)) or type(error).__name__
    return f"{error.filename or _code_of(error)}: {problem}"


def _code_of(error: BaseException) -> str:
    """Return the function of this package that an error came from, in place of a file name."""
    names = ["the command"]
    trace = error.__traceback__
    while trace:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("namedmask."):
            names.append(f"{module}.{trace.tb_frame.f_code.co_name}")
        trace = trace.tb_next
    return names[-1]


def _syntax(error: SyntaxError) -> str:
    return f"{error.filename}, line {error.lineno}: {error.msg}"


_MEANINGS: tuple[tuple[type[BaseException], Callable[..., str]], ...] = (
    (MemoryError, _memory),
    (ImportError, _import),
    (SyntaxError, _syntax),
    (OSError, _file),
    (RecursionError, lambda error: "the input is nested too deeply"),
)
"""Texts of the errors of Python, by class."""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _last_line(text: str) -> str:
    """Return the last line of a text, of which the lines before it may be a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LONGEST].rstrip(". ") if lines else ""


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "?", "!")) else f"{line}."
