"""Segmenters built, saved and loaded: backbone weights, checkpoints, bare state dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from namedmask.config import SegmenterConfig
from namedmask.config.registry import resolve
from namedmask.errors import CheckpointError
from namedmask.schema.columns import FORMAT_VERSION, IGNORE
from namedmask.segmenter.deeplab import SEGMENTERS
from namedmask.storage import Place, place_of
from namedmask.weights.catalogue import path_of
from namedmask.weights.tensors import load_strict, read_tensors, some_of, write_tree

MINIWORLD_BACKBONE = Path(
    str(resources.files("namedmask") / "miniworld/weights/backbone.safetensors")
)


def build_segmenter(config: SegmenterConfig, num_labels: int, seed: int = 0) -> nn.Module:
    """Return a new segmenter for `num_labels` labels, background included, backbone loaded.

    What no file gives is drawn from `seed`; torch's own generator stays as it was.

    Raises:
        ConfigError: no segmenter of this name.
        CheckpointError: the backbone's file is missing or made for another network.
    """
    factory = resolve("segmenter", config.name, SEGMENTERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory(num_labels)
    if config.backbone_weights:
        shipped = config.backbone_weights == "miniworld"
        path = MINIWORLD_BACKBONE if shipped else path_of(config.backbone_weights)
        load_strict(cast(nn.Module, model.backbone), read_tensors(path), path, config.name)
    return model


def starting_segmenter(
    config: SegmenterConfig, names: Sequence[str], seed: int = 0, start: str = ""
) -> nn.Module:
    """Return a segmenter to train for these label names (background left out).

    With `start`, a checkpoint, it begins with that one's weights: labels of the same name take
    theirs over, whatever their place, and new ones are drawn from `seed`.

    Raises:
        ConfigError, CheckpointError: as `build_segmenter` and `load_checkpoint`; the checkpoint
            holds another network.
    """
    model = build_segmenter(config, len(names) + 1, seed)
    if start:
        path = place_of(start)
        old, old_names = load_checkpoint(path, config)
        before, state = old.state_dict(), model.state_dict()
        if type(old) is not type(model) or before.keys() != state.keys():
            raise CheckpointError(
                f"train.start: {path} holds another network than segmenter.name '{config.name}'. "
                "Name the one it was trained with, or leave train.start empty."
            )
        places = [(0, 0)] + [
            (place, old_names.index(name) + 1)
            for place, name in enumerate(names, start=1)
            if name in old_names
        ]
        to, of = (list(side) for side in zip(*places, strict=True))
        by_label = _keys_by_label(config)
        for key, value in before.items():
            if key in by_label:
                state[key][to] = value[of]
            else:
                state[key] = value
        load_strict(model, state, path, config.name)
    return model


def _keys_by_label(config: SegmenterConfig) -> set[str]:
    """Return the tensors of a segmenter that have a row for each label."""
    factory = resolve("segmenter", config.name, SEGMENTERS)
    with torch.device("meta"):
        two, three = factory(2).state_dict(), factory(3).state_dict()
    return {key for key, value in two.items() if value.shape != three[key].shape}


def save_checkpoint(
    path: Place,
    model: nn.Module,
    *,
    name: str,
    names: Sequence[str],
    step: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the segmenter `name` with its label names (background left out) to `path`.

    `extra` is plain values kept beside the weights. A killed run leaves the old file or the new.

    Raises:
        NamedMaskError: the folder cannot be written.
    """
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    tree = {
        "format_version": FORMAT_VERSION,
        "segmenter": name,
        "names": list(names),
        "step": step,
        "extra": dict(extra or {}),
        "model": state,
    }
    write_tree(path, tree)


def load_checkpoint(
    path: Place, config: SegmenterConfig | None = None, names: Sequence[str] = ()
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the segmenter of a checkpoint in eval mode, and its label names without background.

    A file does not choose which code runs: one that names a dotted path is loaded only when
    `config` names the same. A flat state dict, as the original releases them, says neither which
    network it is of nor what its labels are called: `config` and `names` do.

    Raises:
        CheckpointError: missing, truncated, not ours, newer, or of another label count.
    """
    tree = read_tensors(path)
    if tree and all(isinstance(value, Tensor) for value in tree.values()):
        return _of_bare_weights(tree, path, config or SegmenterConfig(), names), tuple(names)
    version = tree.get("format_version")
    if not isinstance(version, int) or not isinstance(tree.get("model"), dict):
        raise CheckpointError(
            f"{path}: expected a NamedMask checkpoint with format_version and model, or a flat "
            f"state dict; got entries {some_of(tree)}."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version}, this version reads up to {FORMAT_VERSION}. "
            "Upgrade namedmask."
        )
    name, held = tree.get("segmenter"), tree.get("names")
    if not isinstance(name, str) or not _are_label_names(held):
        raise CheckpointError(
            f"{path}: expected the name of a segmenter and 1 to {IGNORE - 1} different label names."
        )
    if name not in SEGMENTERS and (config is None or config.name != name):
        raise CheckpointError(
            f"{path}: holds segmenter '{name}'; known: {', '.join(SEGMENTERS)}. For a plug-in, "
            "name the same in segmenter.name of the run file."
        )
    model = resolve("segmenter", name, SEGMENTERS)(len(held) + 1)
    load_strict(model, tree["model"], path, f"{name} with {len(held) + 1} labels")
    return model.eval(), tuple(held)


def _of_bare_weights(
    state: Mapping[str, Tensor], path: Place, config: SegmenterConfig, names: Sequence[str]
) -> nn.Module:
    """Return the configured segmenter with these weights, whose last layer has a row a label."""
    rows = {state[key].shape[:1] for key in _keys_by_label(config) if key in state}
    count = next(iter(rows))[0] if len(rows) == 1 and all(rows) else None
    if count and not names:
        raise CheckpointError(
            f"{path}: holds bare weights of {count} labels, background included, without their "
            "names. Name the category set they were trained on: --set voc2012, or --set "
            "categories.set=FILE.toml."
        )
    if count and count != len(names) + 1:
        raise CheckpointError(
            f"{path}: its last layer has {count} labels, background included; the {len(names)} "
            f"names given and the background are {len(names) + 1}. Name the category set it was "
            "trained on: --set voc2012, or --set categories.set=FILE.toml."
        )
    model = resolve("segmenter", config.name, SEGMENTERS)(len(names) + 1)
    load_strict(model, state, path, f"{config.name} with {len(names) + 1} labels")
    return model.eval()


def _are_label_names(names: object) -> TypeGuard[list[str]]:
    return (
        isinstance(names, list)
        and 0 < len(names) < IGNORE
        and all(isinstance(name, str) and name for name in names)
        and len(set(names)) == len(names)
    )
