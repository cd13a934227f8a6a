"""The verb `ablate`: the same archives, trained on again and again with one thing changed.

A *study* is a list of variants of a run; each is trained with every seed and judged on two splits:
one to choose by, one to report. A trial lies in `RUN/ablations/STUDY/VARIANT/seed-N-DIGEST` and is
a run folder that reads the archive of its run; the digest is of all that its weights follow from,
so a trial is done once, and one that was cut off goes on.

Method: the study `copy-paste` is Table 1 of the supplement, judged on VOC2012 train; the study
`experts` asks what the experts are worth. Differs: several seeds, and a split to choose by.
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
from namedmask.storage.files import digest, read_json, write_file, write_json
from namedmask.verbs.evaluate import score
from namedmask.verbs.train import train_segmenter

SELECT = "select"
"""The mini world's split to choose by."""


@dataclass(frozen=True)
class Variant:
    """One line of a study: what its table says in the columns of the study, and what it changes."""

    name: str
    cells: tuple[str, ...]
    changes: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """What is compared, and what the columns of its table are called."""

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
"""Method: n_max of the supplement's Table 1."""


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
    """Return the study as plain values: a line a variant, with mean and spread over the seeds.

    It is also written to `RUN/ablations/STUDY.json` and, as a table, `STUDY.md`.

    Args:
        config: of a run with finished archives, refined where a variant wants that; its
            `evaluate.split` is reported.
        study: a name in `STUDIES`.
        seeds: of the trainings, in place of `run.seed`.
        only: names of variants; all, if empty.
        choose_on: split to choose by; empty: the mini world's `select`, else the one reported, as
            the paper does.

    Raises:
        ConfigError: no such study, variant or benchmark.
        InputError: the run has no archive yet, or it is not refined.
    """
    variants = _variants(study, only)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"the seeds of an ablation must be given, and differ; got {list(seeds)}.")
    splits = list(dict.fromkeys((_choosing(config, choose_on), config.evaluate.split)))
    with open_run(config.run.out) as ledger:
        base = VerbRun(config, ledger, progress)
        for variant in variants:
            _require(base, variant)
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
        found = _summed_up(config, study, variants, seeds, splits, scores)
        folder = ledger.folder / layout.ABLATIONS
        write_json(folder / f"{study}.json", found)
        write_file(folder / f"{study}.md", table_of(found).encode())
    return found


def table_of(found: Mapping[str, Any]) -> str:
    """Return a study as a Markdown table, in the columns of the paper's, and what was chosen."""
    columns = list(STUDIES[found["study"]].columns)
    splits = list(dict.fromkeys((found["split"], found["chosen_on"])))
    head = [*columns, *(f"mIoU {split} (lowest to highest)" for split in splits)]
    lines = [head, ["---"] * len(head)]
    for row in found["rows"]:
        cells = [_spread_text(row["miou"][split]) for split in splits]
        lines.append([*row["cells"], *cells])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    best = found["chosen"]
    return (
        f"{text}\n\n{found['benchmark']}, {found['iterations']:,} iterations, seeds "
        f"{', '.join(map(str, found['seeds']))}. Best on {found['chosen_on']}: {best['name']}, "
        f"{best['miou']:.3f} on {found['split']}.\n"
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
    """Raise InputError when the run lacks what a variant is trained on."""
    enabled = variant.changes.get("experts", {}).get("enabled", base.config.experts.enabled)
    if enabled and not base.config.experts.enabled:
        raise InputError(
            f"variant '{variant.name}' needs the experts' masks, and experts.enabled is false. Set "
            "it to true, and run 'namedmask refine' first."
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
    """Return the mIoU by split of one training, done now or before."""
    config = _changed(base.config, {**variant.changes, "run": {"seed": seed}})
    source = base.ledger.folder
    name = f"seed-{seed}-{_follows_from(config, base)[:8]}"
    folder = source / layout.ABLATIONS / study / variant.name / name
    config = _changed(config, {"run": {"seed": seed, "out": folder}})
    with open_run(folder) as ledger:
        run = VerbRun(config, ledger, base.progress, archives=source)
        if run.finished("train") is None:
            result = train_segmenter(executor, run)
            ledger.finish("train", result)
        return {split: _score(executor, run, split) for split in splits}


def _follows_from(config: Config, base: VerbRun) -> str:
    """Return a digest of all that the weights of a trial follow from."""
    archive = Archive.open(base.ledger.folder / layout.ARCHIVE)
    content: list[Any] = [VerbRun(config, base.ledger, base.progress).settings("train")]
    content.append([[one.name, one.label_id, one.sha256] for one in archive.categories])
    if config.experts.enabled:
        masks = [commit.files for commit in base.ledger.commits(REFINED).values()]
        content.append([sorted((file, of["sha256"]) for file, of in one.items()) for one in masks])
    return digest([json.dumps(content, sort_keys=True)])


def _score(executor: Executor, trial: VerbRun, split: str) -> float:
    """Return the mIoU of a trial on a split, from `scores-SPLIT.json` where that is there."""
    config = _changed(trial.config, {"evaluate": {"split": split, "export": ""}})
    run = VerbRun(config, trial.ledger, trial.progress)
    asked = run.settings("evaluate")
    path = run.ledger.folder / layout.scores_file(split)
    found = read_json(path) if path.exists() else {}
    if found.get("asked") != asked:
        found = {"asked": asked} | score(executor, run, None)
        write_json(path, {key: found[key] for key in ("asked", "miou", "pixel_accuracy", "iou")})
    if found["miou"] is None:
        raise InputError(
            f"split '{split}' of benchmark '{config.evaluate.benchmark}' has no labels to judge "
            "by. Set evaluate.split or --choose-on to one that has."
        )
    return float(found["miou"])


def _summed_up(
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
