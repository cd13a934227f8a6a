"""What the commands share: their options, and how a run file is taken up and its verb run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from namedmask.cli.screen import say_already_done, show, show_settings, write_json
from namedmask.config import Config
from namedmask.engine.processes import begin_server
from namedmask.run.progress import Progress, SilentProgress, progress_for
from namedmask.run.verb_table import Verb
from namedmask.storage.place import ensure_writable

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="the run file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a key; may be repeated"),
]
AsJson = Annotated[bool, typer.Option("--json", help="write the result as JSON, nothing else")]

Retry = Annotated[
    list[str] | None,
    typer.Option("--retry", metavar="REASON", help="try rows that failed so again: transient, …"),
]
Local = Annotated[bool, typer.Option("--local", help="without Ray: a plain loop in this process")]
Address = Annotated[
    str, typer.Option(help="a running Ray (auto, host:port); else one is started here")
]


def run_verb(
    verb: Verb,
    run_file: Path,
    overrides: Sequence[str] | None,
    local: bool,
    address: str,
    as_json: bool,
    retry: Sequence[str] = (),
) -> None:
    """Run a verb and write what it ended with."""
    options = {"retry": retry} if retry else {}

    def work(*arguments: Any) -> dict[str, Any]:
        return verb.load()(*arguments, **options)

    run_in(work, show, run_file, overrides, local, address, as_json)


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
        show_settings(config)
    if local and begin_server(config.fetch):
        from namedmask.engine import preload  # noqa: F401  (in the meantime, here too)
    from namedmask.engine import executor_of

    with executor_of(config, local) as executor:
        found = work(config, progress(as_json), executor)
    if as_json:
        write_json(found)
    elif found.get("skipped"):
        say_already_done(config.run.out)
    else:
        show_found(found)


def progress(as_json: bool) -> Progress:
    """Return where progress is shown: nowhere beside JSON."""
    return SilentProgress() if as_json else progress_for(sys.stderr)


def _at(address: str) -> list[str]:
    return [f'ray.address="{address}"'] if address else []
