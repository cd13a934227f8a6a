"""The `namedmask` command with its subcommands; a verb's module is imported when the verb runs.

Exit codes: 0 finished, 1 the run failed, 2 invalid input, 130 interrupted; `submit` ends with the
exit code of the job. Results go to stdout (with `--json` as one JSON document), progress and errors
to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import namedmask
from namedmask.cli.ablate import ablate
from namedmask.cli.evaluate import config_of_checkpoint, evaluate
from namedmask.cli.guard import guarded, log_into
from namedmask.cli.options import (
    Address,
    AsJson,
    Local,
    Overrides,
    Retry,
    RunFile,
    path_of,
    progress,
    run_verb,
)
from namedmask.cli.screen import (
    say_already_done,
    show,
    show_hits,
    show_job_line,
    show_plan,
    show_scorecard,
    write,
    write_json,
)
from namedmask.cli.streams import mend_streams
from namedmask.cli.weights import checkpoint_of, export_faces, weights
from namedmask.config import Config
from namedmask.errors import InputError, NamedMaskError
from namedmask.images.limits import PREDICT_SIDE
from namedmask.run import layout
from namedmask.run.verb_table import VERBS, Verb
from namedmask.schema.status import OK
from namedmask.storage import place_of
from namedmask.storage.place import ensure_writable

app = typer.Typer(
    help="Category names in, semantic segmenter out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing ends in a traceback, see guard.py."""
    # Set this before torch is imported. If waiting threads spin, training on cores that another
    # program uses is 19 times slower (0.2 against 3.8 steps per second on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    mend_streams()
    return guarded(partial(app, args=arguments, prog_name="namedmask"))


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="seed of the mini world and of the run")] = 0,
    out: Annotated[Path, typer.Option(help="run folder", parser=path_of)] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="use more images and train longer")] = False,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on a drawn mini world with known truth, and check the scores."""
    ensure_writable(out, "--out")
    log_into(out)
    from namedmask.miniworld.demo import run_demo

    summary = run_demo(seed=seed, out=out, full=full, local=local, progress=progress(as_json))
    if as_json:
        write_json(summary)
        return
    if summary.get("skipped"):
        say_already_done(out)
    show_scorecard(summary, full)
    write(f"report: {out / layout.REPORT}")


def _add_verb(verb: Verb) -> None:
    @app.command(verb.name, help=verb.help)
    def run(
        run_file: RunFile,
        overrides: Overrides = None,
        local: Local = False,
        address: Address = "",
        as_json: AsJson = False,
    ) -> None:
        run_verb(verb.load, run_file, overrides, local, address, as_json)


def _add_row_verb(verb: Verb) -> None:
    @app.command(verb.name, help=verb.help)
    def run(
        run_file: RunFile,
        retry: Retry = None,
        overrides: Overrides = None,
        local: Local = False,
        address: Address = "",
        as_json: AsJson = False,
    ) -> None:
        options: dict[str, Any] = {"retry": retry} if retry else {}
        run_verb(verb.load, run_file, overrides, local, address, as_json, **options)


for _verb in VERBS.values():
    if not _verb.has_own_command:
        (_add_row_verb if _verb.retries_rows else _add_verb)(_verb)

app.command()(evaluate)


@app.command()
def submit(
    run_file: RunFile,
    address: Annotated[
        str, typer.Option(help="url of the cluster's dashboard")
    ] = "http://127.0.0.1:8265",
    verbs: Annotated[
        list[str] | None,
        typer.Option(
            "--verb", help="verb to run; repeatable; default: curate, refine, train, evaluate"
        ),
    ] = None,
    overrides: Overrides = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="folder to send, with modules and small files that the run file names"),
    ] = None,
    ship_package: Annotated[
        bool,
        typer.Option("--ship-package", help="send this namedmask, in place of the cluster's own"),
    ] = False,
    submission_id: Annotated[str, typer.Option(help="id of the job; default: Ray chooses")] = "",
    wait: Annotated[bool, typer.Option(help="follow the job until it ends")] = True,
) -> None:
    """Run verbs as one job on a Ray cluster; results go to stdout, the job's log to stderr."""
    from namedmask.engine.on_ray import submit as on_ray

    submission = on_ray.Submission(
        run_file, verbs or (), overrides or (), working_dir, ship_package, submission_id
    )
    job = on_ray.submit(submission, address)
    if not wait:
        write(job)
        return
    sys.stderr.write(f"job {job} at {address}\n")
    on_ray.follow(on_ray.connect(address), job, show_job_line)


@app.command()
def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="file, or name of `namedmask weights`", parser=checkpoint_of
        ),
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="image files")],
    out: Annotated[Path, typer.Option(help="folder for the results", parser=path_of)] = Path(
        "predictions"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda; a missing GPU is an error")] = "cpu",
    max_side: Annotated[
        int,
        typer.Option(min=0, help="longest side for the network, in pixels; 0: that of the image"),
    ] = PREDICT_SIDE,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SET|SECTION.KEY=VALUE",
            help="for weights without label names: a category set, or a key; repeatable",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Segment images; write a label map and an overlay with label names per image."""
    from namedmask.config.registry import torch_device
    from namedmask.verbs.predict import predict_files

    config = config_of_checkpoint(overrides or ())
    for path in (checkpoint, *images):
        if not path.is_file():
            raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}.")
    torch_device(device, "predict")
    ensure_writable(out, "--out")
    entries = predict_files(checkpoint, images, out, device, config, max_side)
    if as_json:
        write_json(entries)
    else:
        for entry in entries:
            show(entry)
    bad = [entry for entry in entries if entry["status"] != OK]
    if bad:
        raise NamedMaskError(
            f"{len(bad)} of {len(entries)} images could not be segmented, the first of them "
            f"{bad[0]['file']}: {bad[0]['reason']}. Give a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF "
            f"file. The results of the others are in {out}."
        )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder", parser=place_of)],
    as_json: AsJson = False,
) -> None:
    """Write a run's report.html from the files in its folder."""
    from namedmask.report.run_report import write_report

    if not run.is_dir():
        raise InputError(f"run folder {run} does not exist. Run 'namedmask curate' first.")
    ensure_writable(run, "another folder")
    path = write_report(run)
    write_json({"report": str(path)}) if as_json else write(f"report: {path}")


@app.command()
def search(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="run file or run folder", parser=place_of)
    ],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="description of the images")],
    k: Annotated[int, typer.Option("--k", min=1, help="number of images to find")] = 50,
    html: Annotated[
        Path | None, typer.Option(help="also write a page of links to this file", parser=path_of)
    ] = None,
    templates: Annotated[
        bool, typer.Option("--templates", help="put TEXT into the run's prompt templates")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find the images of a run that are closest to a text; build the index first if necessary."""
    from namedmask.report.search_page import search_page
    from namedmask.run.job import config_of_run
    from namedmask.verbs.search import search as find

    config = config_of_run(run, overrides or ())
    if html is not None:
        ensure_writable(html.parent, "--html")
    result = find(config, text, k, progress(as_json), templates=templates)
    if html is not None:
        html.write_text(search_page(result), encoding="utf-8")
    write_json(result) if as_json else show_hits(result)


@app.command()
def plan(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show the stages of a run and how many images it needs, without starting it."""
    from namedmask.verbs.plan import plan_of

    planned = plan_of(Config.load(run_file, overrides or ()))
    write_json(planned) if as_json else show_plan(planned)


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="folder of a run, an archive or published vectors; or a parquet, checkpoint or "
            "run file",
            parser=place_of,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what kind of file or folder a path is, and what it contains."""
    from namedmask.verbs.inspect import inspect_path

    content = inspect_path(path)
    write_json(content) if as_json else show(content)


app.command("export-faces")(export_faces)
app.command("weights")(weights)
app.command("ablate")(ablate)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, cores, memory, extras and CUDA; exit with 1 if something is broken."""
    from namedmask.verbs.doctor import diagnose

    diagnosis = diagnose()
    write_json(diagnosis) if as_json else show(diagnosis)
    if diagnosis["problems"]:
        raise typer.Exit(1)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        write(namedmask.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="write the version and exit",
        ),
    ] = False,
) -> None:
    """Category names in, semantic segmenter out."""
