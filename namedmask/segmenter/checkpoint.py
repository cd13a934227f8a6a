"""Functions that build, save and load segmenters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from namedmask.config import SegmenterConfig
from namedmask.config.registry import resolve
from namedmask.errors import CheckpointError, ConfigError
from namedmask.schema.columns import FORMAT_VERSION, IGNORE
from namedmask.segmenter.deeplab import SEGMENTERS
from namedmask.storage import Place, place_of
from namedmask.weights.catalog import path_of
from namedmask.weights.tensors import load_strict, read_tensors, some_of, write_tree

MINIWORLD_BACKBONE = Path(
    str(resources.files("namedmask") / "miniworld/weights/backbone.safetensors")
)
"""Path of the mini world's backbone weights, which ship with the package."""


def build_segmenter(config: SegmenterConfig, num_labels: int, seed: int = 0) -> nn.Module:
    """Return a new segmenter for `num_labels` labels, background included.

    The backbone weights come from the configured file. Weights that no file provides are drawn
    from `seed`; the state of torch's global generator does not change.

    Raises:
        ConfigError: no segmenter has the configured name, or a plug-in returns no torch module.
        CheckpointError: the backbone file is missing or belongs to another network.
    """
    factory = resolve("segmenter", config.name, SEGMENTERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory(num_labels)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"segmenter '{config.name}' gave a {type(model).__name__}; expected a function that "
            "takes the number of labels and returns a torch module."
        )
    if config.backbone_weights:
        shipped = config.backbone_weights == "miniworld"
        path = MINIWORLD_BACKBONE if shipped else path_of(config.backbone_weights)
        load_strict(cast(nn.Module, model.backbone), read_tensors(path), path, config.name)
    return model


def starting_segmenter(
    config: SegmenterConfig, names: Sequence[str], seed: int = 0, start: str = ""
) -> nn.Module:
    """Return a segmenter to train for these label names (background left out).

    If `start` is the path of a checkpoint, the segmenter takes its weights from there. The last
    layer is matched by label name, even where the label ids differ; its weights for labels that
    the checkpoint lacks are drawn from `seed`.

    Raises:
        ConfigError, CheckpointError: as `build_segmenter` and `load_checkpoint`.
        CheckpointError: the checkpoint holds another network than `config` names.
    """
    model = build_segmenter(config, len(names) + 1, seed)
    if start:
        path = place_of(start)
        old, old_names = load_checkpoint(path, config)
        old_state, state = old.state_dict(), model.state_dict()
        if type(old) is not type(model) or old_state.keys() != state.keys():
            raise CheckpointError(
                f"train.start: {path} holds another network than segmenter.name '{config.name}'. "
                "Set segmenter.name to the network of the checkpoint, or leave train.start empty."
            )
        label_pairs = [(0, 0)] + [
            (label, old_names.index(name) + 1)
            for label, name in enumerate(names, start=1)
            if name in old_names
        ]
        labels, old_labels = (list(side) for side in zip(*label_pairs, strict=True))
        label_keys = _label_keys(config)
        for key, value in old_state.items():
            if key in label_keys:
                state[key][labels] = value[old_labels]
            else:
                state[key] = value
        load_strict(model, state, path, config.name)
    return model


def _label_keys(config: SegmenterConfig) -> set[str]:
    """Return the keys of a segmenter's state dict whose tensors have one row per label."""
    factory = resolve("segmenter", config.name, SEGMENTERS)
    with torch.device("meta"):
        state, larger = factory(2).state_dict(), factory(3).state_dict()
    return {key for key, value in state.items() if value.shape != larger[key].shape}


def save_checkpoint(
    path: Place,
    model: nn.Module,
    *,
    name: str,
    names: Sequence[str],
    step: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the segmenter `model` with its label names (background left out) to `path`.

    `name` is the registered name of the network. `extra` holds plain values to store with the
    weights. If the process is killed, `path` holds either the old file or the new one.

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
    path: Place | str, config: SegmenterConfig | None = None, names: Sequence[str] = ()
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the segmenter of a checkpoint in eval mode, and its label names without background.

    A checkpoint cannot choose which code runs. If its segmenter is a dotted path, the checkpoint is
    loaded only if `config` names the same path. A flat state dict, the format of the original
    release, records neither the network nor the label names, so `config` and `names` give them.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, written by a newer
            version, or for another number of labels.
    """
    path = place_of(path)
    tree = read_tensors(path)
    if tree and all(isinstance(value, Tensor) for value in tree.values()):
        return _load_bare_weights(tree, path, config or SegmenterConfig(), names), tuple(names)
    version = tree.get("format_version")
    if not isinstance(version, int) or not isinstance(tree.get("model"), dict):
        raise CheckpointError(
            f"{path}: expected a NamedMask checkpoint with format_version and model, or a flat "
            f"state dict; got entries {some_of(tree)}."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: the checkpoint has format {version}; this version of namedmask reads formats "
            f"up to {FORMAT_VERSION}. Upgrade namedmask."
        )
    name, label_names = tree.get("segmenter"), tree.get("names")
    if not isinstance(name, str) or not _are_label_names(label_names):
        raise CheckpointError(
            f"{path}: expected the name of a segmenter and 1 to {IGNORE - 1} different label names."
        )
    if name not in SEGMENTERS and (config is None or config.name != name):
        raise CheckpointError(
            f"{path}: the checkpoint holds segmenter '{name}'; known: {', '.join(SEGMENTERS)}. If "
            "it is a plug-in that you trust, set segmenter.name in the run file to the same name."
        )
    model = resolve("segmenter", name, SEGMENTERS)(len(label_names) + 1)
    load_strict(model, tree["model"], path, f"{name} with {len(label_names) + 1} labels")
    return model.eval(), tuple(label_names)


def _load_bare_weights(
    state: Mapping[str, Tensor], path: Place, config: SegmenterConfig, names: Sequence[str]
) -> nn.Module:
    """Return the configured segmenter with these weights, after comparing the number of labels."""
    rows = {state[key].shape[:1] for key in _label_keys(config) if key in state}
    count = next(iter(rows))[0] if len(rows) == 1 and all(rows) else None
    if count and not names:
        raise CheckpointError(
            f"{path}: the file holds bare weights of {count} labels, background included, without "
            "their names. Name the category set that they were trained on: --set voc2012, or "
            "--set categories.set=FILE.toml."
        )
    if count and count != len(names) + 1:
        raise CheckpointError(
            f"{path}: the last layer has {count} labels, background included; the {len(names)} "
            f"names given and the background are {len(names) + 1}. Name the category set that the "
            "weights were trained on: --set voc2012, or --set categories.set=FILE.toml."
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
