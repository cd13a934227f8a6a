"""The `namedmask` command: one verb a job; a stage is imported when its verb runs.

Exit codes: 0 done, 1 the run itself failed, 2 something given was wrong, 130 interrupted. Results
go to stdout (`--json`: one JSON document), progress and errors to stderr.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import namedmask
from namedmask.config import Config
from namedmask.errors import InputError, NamedMaskError
from namedmask.progress import Progress, SilentProgress, progress_for
from namedmask.storage import Place, place_of, prove_writable

app = typer.Typer(
    help="Category names in, semantic segmenter out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
WRONG_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; no error of the user's ends in a traceback."""
    # Set before torch is imported. Threads that spin while they wait make training on cores that
    # another program uses 19 times slower (0.2 against 3.8 steps a second on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=arguments, prog_name="namedmask")
    except SystemExit as leave:
        if leave.code == 130:
            _complain("interrupted; what is finished is kept. Run the same command to go on.")
        return leave.code if isinstance(leave.code, int) else 0
    except NamedMaskError as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        return _complain_about_files(error)
    return 0


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="seed of the drawn world and of the run")] = 0,
    out: Annotated[Path, typer.Option(help="run folder")] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="more images, longer training")] = False,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole road on the mini world and show its numbers beside the bars."""
    ensure_writable(out, "--out")
    run_demo = _function("namedmask.miniworld.demo", "run_demo")
    summary = run_demo(seed=seed, out=out, full=full, local=local, progress=_progress(as_json))
    if as_json:
        _write_json(summary)
        return
    if summary.get("skipped"):
        _say_already_done(out)
    _show_scorecard(summary, full)
    _write(f"report: {out / 'report.html'}")


@app.command()
def curate(
    run_file: RunFile,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Make the archives from metadata: embed, then build."""
    _run_verb("curate", run_file, overrides, local, address, as_json)


@app.command()
def embed(
    run_file: RunFile,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Read the metadata, fetch the images, and store one vector for each."""
    _run_verb("embed", run_file, overrides, local, address, as_json)


@app.command()
def build(
    run_file: RunFile,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Fill each category's archive from the stored vectors: retrieve, check, mask."""
    _run_verb("build", run_file, overrides, local, address, as_json)


@app.command()
def refine(
    run_file: RunFile,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Train one expert a category and let it redraw the masks of its archive."""
    _run_verb("refine", run_file, overrides, local, address, as_json)


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Train the segmenter on all archives; goes on from the last checkpoint."""
    _run_verb("train", run_file, overrides, local, address, as_json)


@app.command()
def evaluate(
    run_file: RunFile,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Measure the segmenter on the run's benchmark."""
    _run_verb("evaluate", run_file, overrides, local, address, as_json)


@app.command()
def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="segmenter/checkpoint.pt", parser=place_of),
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="pictures")],
    out: Annotated[Path, typer.Option(help="folder for the overlays")] = Path("predictions"),
    device: Annotated[str, typer.Option(help="cpu or cuda; never falls back")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Segment pictures and draw the names on the regions."""
    for path in (checkpoint, *images):
        if not path.is_file():
            raise InputError(f"{path} {'is no file' if path.exists() else 'does not exist'}.")
    ensure_writable(out, "--out")
    found = _function("namedmask.predict", "predict_files")(checkpoint, images, out, device)
    if as_json:
        _write_json(found)
        return
    for entry in found:
        _show(entry)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder", parser=place_of)],
    as_json: AsJson = False,
) -> None:
    """Write the run's report.html again."""
    if not run.is_dir():
        raise InputError(f"run folder {run} does not exist. Run 'curate' first.")
    ensure_writable(run, "another folder")
    path = _function("namedmask.report", "write_report")(run)
    _write_json({"report": str(path)}) if as_json else _write(f"report: {path}")


@app.command()
def plan(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show the stages and how many images a run needs; starts nothing."""
    config = Config.load(run_file, overrides or ())
    planned = _function("namedmask.plan", "plan_of")(config)
    _write_json(planned) if as_json else _show_plan(planned)


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="run or archive folder, .parquet, .pt or .toml", parser=place_of
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Tell what a path is and holds."""
    found = _function("namedmask.inspection", "inspect_path")(path)
    _write_json(found) if as_json else _show(found)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, cores, memory, extras and CUDA; exit 1 when something is broken."""
    found = _function("namedmask.doctor", "diagnose")()
    _write_json(found) if as_json else _show(found)
    if found["problems"]:
        raise typer.Exit(1)


def _show_version(asked: bool) -> None:
    if asked:
        _write(namedmask.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="write the version and leave",
        ),
    ] = False,
) -> None:
    """Category names in, semantic segmenter out."""


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


def _run_verb(
    verb: str,
    run_file: Path,
    overrides: list[str] | None,
    local: bool,
    address: str,
    as_json: bool,
) -> None:
    config = Config.load(run_file, [*(overrides or ()), *_at(address)])
    ensure_writable(config.run.out, "run.out")
    if not as_json:
        _show_settings(config)
    run = _function("namedmask.verbs", verb)
    with _function("namedmask.verbs", "executor_of")(config, local) as executor:
        summary = run(config, _progress(as_json), executor)
    if as_json:
        _write_json(summary)
    elif summary.get("skipped"):
        _say_already_done(config.run.out)
    else:
        _show(summary)


def _at(address: str) -> list[str]:
    return [f'ray.address="{address}"'] if address else []


def _function(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _progress(as_json: bool) -> Progress:
    return SilentProgress() if as_json else progress_for(sys.stderr)


def _say_already_done(out: Place) -> None:
    _write(f"already done: {out}; nothing to do")


def _show_settings(config: Config) -> None:
    """Write to stderr each key whose value is not the default."""
    defaults = Config.of({"run": {"out": ""}}).tree()
    for section, values in config.tree().items():
        for key, value in values.items():
            if value != defaults[section][key]:
                sys.stderr.write(f"{section}.{key} = {json.dumps(value, ensure_ascii=False)}\n")


def _show(tree: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in _rows(tree):
        table.add_row(key, text)
    Console(soft_wrap=True).print(table)


def _show_plan(planned: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("verb", "stage", "reads", "adds", "with", box=None, pad_edge=False)
    for stage in planned["stages"]:
        reads, adds = ", ".join(stage["reads"]), ", ".join(stage["adds"])
        table.add_row(stage["verb"], stage["name"], reads, adds, stage["choice"])
    categories = dict(planned["categories"], names=", ".join(planned["categories"]["names"][:8]))
    _show({"run": planned["run"], "categories": categories})
    Console().print(table)
    _show(planned["images"])
    for note in planned["notes"]:
        _write(f"note: {note}")
    _write("nothing was started")


def _show_scorecard(summary: Mapping[str, Any], full: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from namedmask.scorecard import scorecard

    table = Table("measured", "value", "bar", "", "seed paper", box=None, pad_edge=False)
    words = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}
    lines = scorecard(summary, full)
    for line in lines:
        seed = _text(line.seed) if line.seed is not None else ""
        table.add_row(line.key, _text(line.value), line.bars, words[line.met], seed)
    Console().print(table)
    missed = [line.key for line in lines if line.met is False]
    if missed:
        _write(f"missed: {', '.join(missed)}")


def _rows(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for each value of a nested tree, safe from rich's markup."""
    from rich.markup import escape

    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield escape(f"{prefix}{key}"), escape(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(_text(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _write_json(value: Any) -> None:
    _write(json.dumps(value, indent=2, ensure_ascii=False))


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("error: ", "bold red"), message)
    Console(stderr=True, soft_wrap=True).print(line)


def _complain_about_files(error: OSError) -> int:
    """Say what is wrong with a file or a disk; return 2 where the user can mend it, else 1."""
    place = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    ways_out = {
        READ_ONLY: "Choose a place you may write with --out or run.out.",
        DISK_FULL: "Free some space, or choose another disk with --out or run.out; "
        "what is finished is kept.",
        WRONG_PATH: "Check the path.",
    }
    for numbers, way_out in ways_out.items():
        if error.errno in numbers:
            _complain(f"{place}{reason}. {way_out}")
            return 2
    _complain(f"{place}{reason}.")
    return 1
