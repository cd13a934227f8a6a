"""The command `evaluate`, which scores a run's segmenter, a checkpoint alone, or a baseline."""

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
    run_verb,
)
from namedmask.cli.screen import show, show_baseline, write_json
from namedmask.cli.weights import checkpoint_of
from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.run.verb_table import VERBS
from namedmask.storage import place_of

CHECKPOINTS = (".pt", ".pth", ".safetensors")
"""Suffixes of checkpoints; a path with any other suffix is that of a run file."""


def evaluate(
    run_file: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.toml",
            help="run file, checkpoint file, or name of `namedmask weights`",
            parser=checkpoint_of,
        ),
    ],
    benchmark: Annotated[str, typer.Option(help="short for --set evaluate.benchmark=")] = "",
    root: Annotated[str, typer.Option(help="short for --set evaluate.root=")] = "",
    split: Annotated[str, typer.Option(help="short for --set evaluate.split=")] = "",
    baseline: Annotated[str, typer.Option(help="maskclip or reco, in place of the segmenter")] = "",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="score a baseline at 20 thresholds in one pass")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="probability below which a pixel is background"),
    ] = None,
    threshold_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="use the best threshold in the file of a --sweep", parser=place_of
        ),
    ] = None,
    overrides: Overrides = None,
    local: Local = False,
    address: Address = "",
    as_json: AsJson = False,
) -> None:
    """Score the segmenter of a run, or a CHECKPOINT.pt alone, on a benchmark.

    Weights without label names get the names of the benchmark, or those of a
    category set that is given with --set, such as --set voc2012.

    --baseline scores MaskCLIP or ReCo in place of the segmenter. Neither
    predicts background, so a pixel is background if its best probability is
    below a threshold.
    """
    short = {"benchmark": benchmark, "root": root, "split": split}
    settings = [f"evaluate.{key}={json.dumps(value)}" for key, value in short.items() if value]
    settings = [*(overrides or ()), *settings]
    options: dict[str, Any] = {
        "sweep": sweep,
        "threshold": threshold,
        "threshold_from": threshold_from,
    }
    chosen = [key for key, value in options.items() if value is not None and value is not False]
    if len(chosen) > bool(baseline):
        names = ", ".join(f"--{key.replace('_', '-')}" for key in chosen)
        raise InputError(f"{names}: give at most one of these options, and only with --baseline.")
    if baseline:
        from namedmask.verbs.baselines import evaluate_baseline

        work = partial(evaluate_baseline, baseline, **options)
        run_verb(lambda: work, run_file, settings, local, address, as_json, show_baseline)
    elif run_file.suffix not in CHECKPOINTS:
        run_verb(VERBS["evaluate"].load, run_file, settings, local, address, as_json)
    else:
        from namedmask.verbs.evaluate import evaluate_checkpoint

        scores = evaluate_checkpoint(run_file, config_of_checkpoint(settings), progress(as_json))
        write_json(scores) if as_json else show(scores)


def config_of_checkpoint(overrides: Sequence[str]) -> Config:
    """Return the config for a checkpoint without a run.

    An override without `=` names a category set: `voc2012` means `categories.set=voc2012`.
    """
    settings = [text if "=" in text else f"categories.set={json.dumps(text)}" for text in overrides]
    return Config.of({"run": {"out": "."}}, settings)
