"""The command `ablate`, which compares trainings on a run's archives that differ in one setting."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from namedmask.cli.guard import log_into
from namedmask.cli.screen import write, write_json
from namedmask.errors import ConfigError
from namedmask.run.progress import SilentProgress, progress_for
from namedmask.storage import place_of


def ablate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="run file or run folder", parser=place_of)
    ],
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="name of the study: copy-paste or experts")
    ],
    seeds: Annotated[
        str, typer.Option(help="seeds of the trainings, separated by commas")
    ] = "0,1,2",
    only: Annotated[
        str, typer.Option(help="variants to train, separated by commas; default: all")
    ] = "",
    choose_on: Annotated[
        str,
        typer.Option(
            help="split on which the best variant is chosen; default: `select` on the mini world, "
            "else evaluate.split"
        ),
    ] = "",
    benchmark: Annotated[str, typer.Option(help="short for --set evaluate.benchmark=")] = "",
    root: Annotated[str, typer.Option(help="short for --set evaluate.root=")] = "",
    split: Annotated[str, typer.Option(help="short for --set evaluate.split=")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a key; repeatable"),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="run on this machine, without Ray")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="write the result as JSON, without progress")
    ] = False,
) -> None:
    """Compare trainings on a run's archives that differ in one setting, each with several seeds."""
    from namedmask.engine import executor_of
    from namedmask.run.job import config_of_run
    from namedmask.verbs.ablate import ablate as work  # these load torch, which takes seconds
    from namedmask.verbs.ablate import table_of

    short = {"benchmark": benchmark, "root": root, "split": split}
    settings = [f"evaluate.{key}={json.dumps(value)}" for key, value in short.items() if value]
    config = config_of_run(run, [*(overrides or ()), *settings])
    log_into(config.run.out)
    progress = SilentProgress() if as_json else progress_for(sys.stderr)
    with executor_of(config, local) as executor:
        result = work(
            config, study, progress, executor,
            seeds=_numbers(seeds), only=_words(only), choose_on=choose_on,
        )  # fmt: skip
    write_json(result) if as_json else write(table_of(result).rstrip())


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise ConfigError(
            f"--seeds is '{text}'; expected whole numbers separated by commas, such as 0,1,2."
        ) from None
