"""The parts that each verb opens before its first row: models, plug-ins, devices, files, folders.

The column `opens` of run/verb_table.py names the parts of a verb; `PARTS` says how they are opened.
A verb calls `open_parts` before it records its settings. A command of several verbs opens the parts
of all of them before its first row, so that a slip in the settings of the last verb costs seconds,
not hours.

This module imports no stage and no network itself, because the verb `fetch` needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from namedmask.categories import category_set_of, templates_of
from namedmask.config import CategoriesConfig, Config, EvaluateConfig
from namedmask.errors import InputError
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun
from namedmask.run.stages import Part, checking_stages, stage_part, subject_of
from namedmask.run.verb_table import VERBS
from namedmask.storage import place_of
from namedmask.storage.place import ensure_writable


def open_parts(executor: Executor, run: VerbRun, verb: str, then: Sequence[str] = ()) -> None:
    """Open the parts of a verb, and those of the verbs that the same command runs `then`.

    Raises:
        NamedMaskError: the first part that cannot be opened.
    """
    executor.open(
        run,
        parts_of(verb, run.config, then),
        [part for name in then for part in parts_of(name, run.config)],
    )


def parts_of(verb: str, config: Config, then: Sequence[str] = ()) -> list[Part]:
    """Return the parts of a verb; those of verbs that follow shape how a part is checked."""
    return [part for name in VERBS[verb].opens for part in PARTS[name](config, then)]


def _fetching(config: Config, then: Sequence[str]) -> Iterator[Part]:
    if config.fetch.file_root:
        yield Part("fetch", "fetch.file_root", partial(require_folder, config.fetch.file_root))


def require_folder(folder: str) -> None:
    """Raise InputError unless `fetch.file_root` is a folder on this machine."""
    if not Path(folder).is_dir():
        raise InputError(
            f"fetch.file_root '{folder}' is not a folder on this machine. Set it to the folder "
            "that holds the images, or leave it empty."
        )


def _embedding(config: Config, then: Sequence[str]) -> Iterator[Part]:
    part = stage_part("embed", config)
    if "build" in then:  # the width of the vectors decides whether its filters fit
        part = Part("embed", part.subject, partial(open_embed_and_filters, config), "embed")
    yield part


def open_embed_and_filters(config: Config) -> Any:
    """Return the stage `embed`, once the safety filters are known to fit its vectors.

    Raises:
        CheckpointError: the file of a safety filter cannot be used.
    """
    from namedmask.retrieve.safety import load_filters
    from namedmask.run.stages import load_stage

    stage: Any = load_stage("embed", config)
    load_filters(config.retrieve, stage.embedder.dim)
    return stage


def _checks(config: Config, then: Sequence[str]) -> Iterator[Part]:
    for name in checking_stages(config):
        if name != "fetch":  # it has nothing to open
            yield stage_part(name, config)


def _queries(config: Config, then: Sequence[str]) -> Iterator[Part]:
    yield Part("", "categories", partial(read_queries, config.categories))
    retrieve = config.retrieve
    if retrieve.safety_head or retrieve.violence_prompts:
        files = retrieve.safety_head, retrieve.violence_prompts
        yield Part("", "a safety filter of the section retrieve", partial(read_filters, *files))


def read_queries(config: CategoriesConfig) -> None:
    """Read the category set, the templates and the example images.

    Raises:
        ConfigError: as `category_set_of` and `templates_of`.
        InputError: an example file is missing or is not an image.
    """
    from namedmask.retrieve.queries import read_example

    category_set_of(config)
    templates_of(config)
    for name, rules in config.each.items():
        for path in rules.examples:
            read_example(name, path)


def read_filters(safety_head: str, violence_prompts: str) -> None:
    """Read the files of the safety filters, whatever the width of their vectors.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    from namedmask.retrieve.safety import load_prompts, load_safety_head

    if safety_head:
        load_safety_head(safety_head)
    if violence_prompts:
        load_prompts(violence_prompts)


def _experts(config: Config, then: Sequence[str]) -> Iterator[Part]:
    device = partial(open_segmenter, config, config.experts.device, "experts")
    yield Part("experts", f"{subject_of('segmenter', config)} of the experts", device)


def _training(config: Config, then: Sequence[str]) -> Iterator[Part]:
    device = partial(open_segmenter, config, config.train.device, "train", config.train.start)
    yield Part("train", subject_of("segmenter", config), device)


def open_segmenter(config: Config, device: str, section: str, start: str = "") -> None:
    """Make the segmenter, with its weights, that a training starts from, and find its device.

    Raises:
        ConfigError, CheckpointError, InputError: as `starting_segmenter` and `torch_device`.
    """
    from namedmask.config.registry import torch_device
    from namedmask.segmenter.checkpoint import starting_segmenter

    torch_device(device, section)
    starting_segmenter(config.segmenter, ["thing"], config.run.seed, start)


def _scoring(config: Config, then: Sequence[str]) -> Iterator[Part]:
    yield Part("evaluate", subject_of("evaluate", config), partial(open_scoring, config.evaluate))


def open_scoring(config: EvaluateConfig) -> None:
    """Open the benchmark, and find the device and the folder for exported predictions.

    Raises:
        ConfigError, InputError: as `open_benchmark`, `torch_device` and `ensure_writable`.
    """
    from namedmask.config.registry import torch_device
    from namedmask.evaluate.benchmarks import open_benchmark

    open_benchmark(config)
    torch_device(config.device, "evaluate")
    if config.export:
        ensure_writable(place_of(config.export), "evaluate.export")


PARTS: dict[str, Callable[[Config, Sequence[str]], Iterator[Part]]] = {
    "fetching": _fetching,
    "embedding": _embedding,
    "checks": _checks,
    "queries": _queries,
    "experts": _experts,
    "training": _training,
    "scoring": _scoring,
}
"""Parts by their name in the column `opens` of run/verb_table.py."""
