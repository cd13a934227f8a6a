"""The command `ablate`, which compares trainings on a run's archives that differ in one setting.

A *study* is a list of variants of a run. Each variant is trained with every seed and scored on two
splits. The best variant is chosen on the first split, and its score on the second is reported.
Each training is a *trial* with a run folder of its own,
`RUN/ablations/STUDY/VARIANT/seed-N-DIGEST`, and reads the archives of the studied run. The digest
covers everything that the weights depend on, so a finished trial is not repeated and an interrupted
trial resumes.

Method: the study `copy-paste` is Table 1 of the supplement, scored on VOC2012 train; the study
`experts` compares the experts' masks with the pseudo-masks. Differs: several seeds, and a separate
split for the choice of the best variant.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.errors import ConfigError, InputError, unknown_name
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun, require_finished
from namedmask.run.layout import REFINED
from namedmask.run.ledger import open_run
from namedmask.run.progress import Progress
from namedmask.run.verb_table import verbs_before
from namedmask.storage.files import content_of, digest, read_json, write_file, write_json
from namedmask.verbs.evaluate import score
from namedmask.verbs.preflight import parts_of
from namedmask.verbs.train import train_segmenter

SELECT = "select"
"""Split of the mini world on which the best variant is chosen."""


@dataclass(frozen=True)
class Variant:
    """A variant of a study, with its first cells in the study's table and its changed settings."""

    name: str
    cells: tuple[str, ...]  # one per column of the study
    changes: Mapping[str, Mapping[str, Any]]  # values by section and key


@dataclass(frozen=True)
class Study:
    """The variants to compare, and the headings of the first columns of the study's table."""

    columns: tuple[str, ...]
    variants: tuple[Variant, ...]


STUDIES = {
    "copy-paste": Study(
        ("copy-paste", "n_max"),
        (
            Variant("none", ("no", "-"), {"augment": {"n_max": 1}}),
            *(
                Variant(str(count), ("yes", str(count)), {"augment": {"n_max": count}})
                for count in (2, 4, 6, 8, 10)
            ),
        ),
    ),
    "experts": Study(
        ("masks",),
        (
            Variant("pseudo-masks", ("pseudo-masks",), {"experts": {"enabled": False}}),
            Variant("experts", ("experts'",), {"experts": {"enabled": True}}),
        ),
    ),
}
"""The studies by name. Method: the values of n_max are those of the supplement's Table 1."""


def ablate(
    config: Config,
    study: str,
    progress: Progress,
    executor: Executor,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    only: Sequence[str] = (),
    choose_on: str = "",
) -> dict[str, Any]:
    """Train and score the variants of a study; return one row per variant, as plain values.

    A row has, per split, the mean and the spread of the mIoU over the seeds.

    The result is also written to `RUN/ablations/STUDY.json` and, as a table, to `STUDY.md`.

    Args:
        config: config of a run with finished archives, which must be refined if a variant trains
            on refined masks; its `evaluate.split` is reported.
        study: a name in `STUDIES`.
        progress: displays the number of finished trials.
        executor: runs the trainings and the scoring.
        seeds: seeds of the trainings, in place of `run.seed`.
        only: names of the variants to train; all variants if empty.
        choose_on: split on which the best variant is chosen; if empty, `select` on the mini world,
            and elsewhere the reported split, as in the paper.

    Raises:
        ConfigError: the study, a variant or the benchmark is unknown, or `seeds` is empty or has a
            seed twice.
        InputError: the run has no archives, they are not refined although a variant needs refined
            masks, or a split has no labels.
    """
    variants = _variants(study, only)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"an ablation needs one or more different seeds; got {list(seeds)}.")
    splits = list(dict.fromkeys((_choosing(config, choose_on), config.evaluate.split)))
    with open_run(config.run.out) as ledger:
        base = VerbRun(config, ledger, progress)
        for variant in variants:
            _require(base, variant)
        for split in splits:  # now, not after the first training
            executor.open(
                base, parts_of("evaluate", _changed(config, {"evaluate": {"split": split}}))
            )
        executor.open(base, parts_of("train", config))
        with progress.step(f"ablate {study}", len(variants) * len(seeds)) as step:
            scores: dict[str, dict[str, list[float]]] = {}
            for variant in variants:
                by_split = scores.setdefault(variant.name, {split: [] for split in splits})
                for seed in seeds:
                    for split, score in _trial(
                        base, study, variant, seed, splits, executor
                    ).items():
                        by_split[split].append(score)
                    step.advance()
        summary = _summary(config, study, variants, seeds, splits, scores)
        folder = ledger.folder / layout.ABLATIONS
        write_json(folder / f"{study}.json", summary)
        write_file(folder / f"{study}.md", table_of(summary).encode())
    return summary


def table_of(summary: Mapping[str, Any]) -> str:
    """Return a study as a Markdown table, with a line about the chosen variant below."""
    columns = list(STUDIES[summary["study"]].columns)
    splits = list(dict.fromkeys((summary["split"], summary["chosen_on"])))
    head = [*columns, *(f"mIoU {split} (lowest to highest)" for split in splits)]
    lines = [head, ["---"] * len(head)]
    for row in summary["rows"]:
        cells = [_spread_text(row["miou"][split]) for split in splits]
        lines.append([*row["cells"], *cells])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    best = summary["chosen"]
    return (
        f"{text}\n\n{summary['benchmark']}, {summary['iterations']:,} iterations, seeds "
        f"{', '.join(map(str, summary['seeds']))}. Best on {summary['chosen_on']}: {best['name']}, "
        f"{best['miou']:.3f} on {summary['split']}.\n"
    )


def _variants(study: str, only: Sequence[str]) -> list[Variant]:
    if study not in STUDIES:
        raise unknown_name("study", study, STUDIES)
    known = {variant.name: variant for variant in STUDIES[study].variants}
    for name in only:
        if name not in known:
            raise unknown_name(f"variant of study '{study}'", name, known)
    return [variant for name, variant in known.items() if not only or name in only]


def _choosing(config: Config, choose_on: str) -> str:
    evaluate = config.evaluate
    return choose_on or (SELECT if evaluate.benchmark == "miniworld" else evaluate.split)


def _changed(config: Config, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    sections = {
        name: getattr(config, name).model_copy(update=dict(keys)) for name, keys in changes.items()
    }
    return config.model_copy(update=sections)


def _require(base: VerbRun, variant: Variant) -> None:
    """Raise InputError unless the verbs that the variant builds on are finished."""
    enabled = variant.changes.get("experts", {}).get("enabled", base.config.experts.enabled)
    if enabled and not base.config.experts.enabled:
        raise InputError(
            f"variant '{variant.name}' needs the experts' masks, but experts.enabled is false. Set "
            "experts.enabled to true and run 'namedmask refine' first."
        )
    wanted = _changed(base.config, {"experts": {"enabled": enabled}})
    for verb in verbs_before("train", wanted):
        require_finished(base, verb, "ablate")


def _trial(
    base: VerbRun,
    study: str,
    variant: Variant,
    seed: int,
    splits: Sequence[str],
    executor: Executor,
) -> dict[str, float]:
    """Return the mIoU of a trial by split; train the trial first unless it is finished."""
    config = _changed(base.config, {**variant.changes, "run": {"seed": seed}})
    source = base.ledger.folder
    name = f"seed-{seed}-{_digest_of_inputs(config, base)[:8]}"
    folder = source / layout.ABLATIONS / study / variant.name / name
    config = _changed(config, {"run": {"seed": seed, "out": folder}})
    with open_run(folder) as ledger:
        run = VerbRun(config, ledger, base.progress, archives=source)
        if run.finished("train") is None:
            result = train_segmenter(executor, run)
            ledger.finish("train", result)
        return {split: _score(executor, run, split) for split in splits}


def _digest_of_inputs(config: Config, base: VerbRun) -> str:
    """Return a digest of everything that the weights of a trial depend on."""
    archive = Archive.open(base.ledger.folder / layout.ARCHIVE)
    content: list[Any] = [VerbRun(config, base.ledger, base.progress).settings("train")]
    content.append([[entry.name, entry.label_id, entry.sha256] for entry in archive.categories])
    if config.experts.enabled:
        masks = [commit.files for commit in base.ledger.commits(REFINED).values()]
        content.append(
            [sorted((path, file["sha256"]) for path, file in files.items()) for files in masks]
        )
    return digest([json.dumps(content, sort_keys=True)])


def _score(executor: Executor, trial: VerbRun, split: str) -> float:
    """Return the mIoU of a trial on a split, from `scores-SPLIT.json` if the file is current."""
    config = _changed(trial.config, {"evaluate": {"split": split, "export": ""}})
    run = VerbRun(config, trial.ledger, trial.progress)
    settings = run.settings("evaluate")
    path = run.ledger.folder / layout.scores_file(split)
    scores = read_json(path) if path.exists() else {}
    if scores.get("asked") != settings:
        scores = {"asked": settings} | score(executor, run, None)
        write_json(path, {key: scores[key] for key in ("asked", "miou", "pixel_accuracy", "iou")})
    with content_of(path):
        score_of_split = scores["miou"] and float(scores["miou"])
    if score_of_split is None:
        raise InputError(
            f"split '{split}' of benchmark '{config.evaluate.benchmark}' has no labels to score "
            "against. Set evaluate.split or --choose-on to a split with labels."
        )
    return score_of_split


def _summary(
    config: Config,
    study: str,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    splits: Sequence[str],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, Any]:
    rows = [
        {
            "name": variant.name,
            "cells": list(variant.cells),
            "miou": {split: _spread(scores[variant.name][split]) for split in splits},
        }
        for variant in variants
    ]
    best = max(variants, key=lambda variant: statistics.fmean(scores[variant.name][splits[0]]))
    split = config.evaluate.split
    return {
        "study": study,
        "benchmark": config.evaluate.benchmark,
        "split": split,
        "chosen_on": splits[0],
        "seeds": list(seeds),
        "iterations": config.train.iterations,
        "rows": rows,
        "chosen": {"name": best.name, "miou": statistics.fmean(scores[best.name][split])},
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.fmean(values), 6),
        "lowest": min(values),
        "highest": max(values),
        "deviation": round(statistics.stdev(values), 6) if len(values) > 1 else None,
        "values": list(values),
    }


def _spread_text(spread: Mapping[str, Any]) -> str:
    return f"{spread['mean']:.3f} ({spread['lowest']:.3f} to {spread['highest']:.3f})"
