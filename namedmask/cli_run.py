"""What the commands share: their options, and how a run file is taken up and its verb run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.progress import Progress, SilentProgress, progress_for
from namedmask.screen import show, write, write_json
from namedmask.storage import Place, prove_writable

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="the run file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a key; may be repeated"),
]
AsJson = Annotated[bool, typer.Option("--json", help="write the result as JSON, nothing else")]

Local = Annotated[bool, typer.Option("--local", help="without Ray: a plain loop in this process")]
Address = Annotated[
    str, typer.Option(help="a running Ray (auto, host:port); else one is started here")
]


def run_verb(
    verb: str,
    run_file: Path,
    overrides: Sequence[str] | None,
    local: bool,
    address: str,
    as_json: bool,
) -> None:
    """Run a verb and write what it ended with."""
    # verbs loads torch, which takes seconds
    module = "namedmask.collect" if verb in ("fetch", "embed") else "namedmask.verbs"
    run_in(function(module, verb), show, run_file, overrides, local, address, as_json)


def run_in(
    work: Callable[..., dict[str, Any]],
    show_found: Callable[[dict[str, Any]], None],
    run_file: Path,
    overrides: Sequence[str] | None,
    local: bool,
    address: str,
    as_json: bool,
) -> None:
    """Give `work` the config, the progress and an executor; write what it returns."""
    config = Config.load(run_file, [*(overrides or ()), *_at(address)])
    ensure_writable(config.run.out, "run.out")
    if not as_json:
        _show_settings(config)
    with function("namedmask.collect", "executor_of")(config, local) as executor:
        found = work(config, progress(as_json), executor)
    if as_json:
        write_json(found)
    elif found.get("skipped"):
        say_already_done(config.run.out)
    else:
        show_found(found)


def function(module: str, name: str) -> Any:
    """Return a function of a module that is imported now."""
    return getattr(importlib.import_module(module), name)


def progress(as_json: bool) -> Progress:
    """Return where progress is shown: nowhere beside JSON."""
    return SilentProgress() if as_json else progress_for(sys.stderr)


def say_already_done(out: Place) -> None:
    """Write that there was nothing to do."""
    write(f"already done: {out}; nothing to do")


def ensure_writable(folder: Place, way_out: str) -> None:
    """Make `folder` when missing, and prove that a file can be written there.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        prove_writable(folder)
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written: {error.strerror or error}. "
            f"Choose another with {way_out}."
        ) from error


def _at(address: str) -> list[str]:
    return [f'ray.address="{address}"'] if address else []


def _show_settings(config: Config) -> None:
    """Write to stderr each key whose value is not the default."""
    defaults = Config.of({"run": {"out": ""}}).tree()
    for section, values in config.tree().items():
        for key, value in values.items():
            if value != defaults[section][key]:
                sys.stderr.write(f"{section}.{key} = {json.dumps(value, ensure_ascii=False)}\n")
