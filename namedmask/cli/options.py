"""The options that commands share, and how a command loads a run file and runs a verb."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from namedmask.cli.guard import log_into
from namedmask.cli.screen import say_already_done, show, show_settings, write_json
from namedmask.config import Config
from namedmask.config.types import expanded
from namedmask.engine.processes import begin_server
from namedmask.errors import InputError
from namedmask.run.progress import Progress, SilentProgress, progress_for
from namedmask.run.verb_table import VerbFunction
from namedmask.storage.place import ensure_writable


def path_of(text: str | Path) -> Path:
    """Return the path that an option names, expanded as in a run file.

    Raises:
        InputError: the text is empty, or names an unknown variable or home folder.
    """
    if isinstance(text, Path):
        return text
    try:
        path = expanded(text.strip())
    except ValueError as error:
        raise InputError(f"{text!r}: {error}.") from error
    if not path:
        raise InputError("an option that names a file or folder is empty; '.' is this folder.")
    return Path(path)


RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="the run file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a key; repeatable"),
]
AsJson = Annotated[bool, typer.Option("--json", help="write the result as JSON, without progress")]

Retry = Annotated[
    list[str] | None,
    typer.Option(
        "--retry", metavar="CLASS", help="retry rows of a failure class (transient, …); repeatable"
    ),
]
Local = Annotated[bool, typer.Option("--local", help="run on this machine, without Ray")]
Address = Annotated[
    str, typer.Option(help="address of a running Ray (auto, host:port); default: ray.address")
]


def run_verb(
    load: Callable[[], VerbFunction],
    run_file: Path,
    overrides: Sequence[str] | None,
    local: bool,
    address: str,
    as_json: bool,
    show_result: Callable[[dict[str, Any]], None] = show,
    **options: Any,
) -> None:
    """Run a verb on a run file and write its result.

    Args:
        load: returns the verb's function; called after the run file was read.
        run_file: the run file.
        overrides: `section.key=value` each; they take precedence over the run file.
        local: whether the plain loop does the work, in place of Ray.
        address: address of a running Ray; empty: `ray.address` of the run file.
        as_json: whether the result goes to stdout as JSON.
        show_result: writes the result to stdout without `as_json`.
        options: further keyword arguments of the verb's function.
    """
    config = Config.load(run_file, [*(overrides or ()), *_at(address)])
    ensure_writable(config.run.out, "run.out")
    log_into(config.run.out)
    if not as_json:
        show_settings(config)
    if local and begin_server(config.fetch):
        from namedmask.engine import preload  # noqa: F401  (while the server imports it too)
    from namedmask.engine import executor_of

    with executor_of(config, local) as executor:
        result = load()(config, progress(as_json), executor, **options)
    if as_json:
        write_json(result)
    elif result.get("skipped"):
        say_already_done(config.run.out)
    else:
        show_result(result)


def progress(as_json: bool) -> Progress:
    """Return the progress display: none with `--json`, else on stderr."""
    return SilentProgress() if as_json else progress_for(sys.stderr)


def _at(address: str) -> list[str]:
    return [f'ray.address="{address}"'] if address else []
