"""The verb `evaluate`: a run's segmenter, a checkpoint alone, or a baseline in their place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from namedmask.cli.options import (
    Address,
    AsJson,
    Local,
    Overrides,
    progress,
    run_in,
    run_verb,
)
from namedmask.cli.screen import show, show_baseline, write_json
from namedmask.cli.weights import checkpoint_of
from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.run.verb_table import VERBS
from namedmask.storage import place_of

CHECKPOINTS = (".pt", ".pth", ".safetensors")


def evaluate(
    run_file: Annotated[
        Path,
        typer.Argument(metavar="RUN.toml", help="or a checkpoint alone", parser=checkpoint_of),
    ],
    benchmark: Annotated[str, typer.Option(help="short for --set evaluate.benchmark=")] = "",
    root: Annotated[str, typer.Option(help="short for --set evaluate.root=")] = "",
    split: Annotated[str, typer.Option(help="short for --set evaluate.split=")] = "",
    baseline: Annotated[str, typer.Option(help="judge maskclip or reco, not the segmenter")] = "",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="a baseline at 20 thresholds in one pass")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="of a baseline: below it is background")
    ] = None,
    threshold_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what a --sweep wrote", parser=place_of)
    ] = None,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Measure the segmenter on the run's benchmark; or a CHECKPOINT.pt alone, by its category set.

    Weights without label names take those of the benchmark, or of --set voc2012. With --baseline,
    MaskCLIP or ReCo is measured in its place, and the threshold below which they see background.
    """
    said = {"benchmark": benchmark, "root": root, "split": split}
    given = [f"evaluate.{key}={json.dumps(value)}" for key, value in said.items() if value]
    given = [*(overrides or ()), *given]
    options: dict[str, Any] = {
        "sweep": sweep,
        "threshold": threshold,
        "threshold_from": threshold_from,
    }
    chosen = [key for key, value in options.items() if value is not None and value is not False]
    if len(chosen) > bool(baseline):
        told = ", ".join(f"--{key.replace('_', '-')}" for key in chosen)
        raise InputError(f"{told}: give at most one of them, and --baseline with it.")
    if baseline:
        from namedmask.verbs.baselines import evaluate_baseline

        work = partial(evaluate_baseline, baseline, **options)
        run_in(work, show_baseline, run_file, given, local, address, as_json)
    elif run_file.suffix not in CHECKPOINTS:
        run_verb(VERBS["evaluate"], run_file, given, local, address, as_json)
    else:
        from namedmask.verbs.evaluate import evaluate_checkpoint

        found = evaluate_checkpoint(run_file, config_of_checkpoint(given), progress(as_json))
        write_json(found) if as_json else show(found)


def config_of_checkpoint(overrides: Sequence[str]) -> Config:
    """Return the config for a checkpoint without a run; `voc2012` is `categories.set=voc2012`."""
    written = [one if "=" in one else f"categories.set={json.dumps(one)}" for one in overrides]
    return Config.of({"run": {"out": ""}}, written)
