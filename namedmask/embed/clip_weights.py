"""Load an open_clip model with the weights that a run file names.

open_clip accepts some wrong weights without an error. This module refuses two kinds of them:
weights with position embeddings for another image size, which open_clip interpolates, and weights
listed by `namedmask weights` that belong to another model, for example one with another activation
function.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from namedmask.config import EmbedConfig
from namedmask.errors import CheckpointError, ConfigError, unknown_name
from namedmask.weights.catalog import known_weights, path_of


def create_open_clip(config: EmbedConfig) -> Any:
    """Return the model that `embed.model` (`open_clip:NAME`) names, with its weights, on the CPU.

    Raises:
        ConfigError: open_clip has no such model, `embed.weights` is neither a pretrained tag of
            the model nor a file, or the weights are known to belong to another model.
        CheckpointError: the weights cannot be read or belong to another model.
    """
    import open_clip

    name = config.model.partition(":")[2]
    if name not in open_clip.list_models():
        raise unknown_name("open_clip model", name, open_clip.list_models())
    quick_gelu = _named_quick_gelu(config)
    tags = open_clip.pretrained.list_pretrained_tags_by_model(name)
    weights = config.weights if config.weights in tags else str(path_of(config.weights or "-"))
    if weights not in tags and not Path(weights).is_file():
        raise ConfigError(
            f"embed.weights '{config.weights}' is neither a file nor a pretrained tag of {name}; "
            f"tags: {', '.join(tags) or 'none'}. Set it to one of them or to a checkpoint file."
        )
    if quick_gelu is None:  # open_clip only warns if the weights need another activation
        trained = open_clip.pretrained.get_pretrained_cfg(name, config.weights)
        quick_gelu = bool(trained.get("quick_gelu", False))
    with loading(config.weights):
        model = open_clip.create_model(name, pretrained=weights, force_quick_gelu=quick_gelu)
    if weights not in tags:
        _refuse_interpolation(model, Path(weights), config.model)
    return model


def asks_hub(config: EmbedConfig) -> bool:
    """Return whether open_clip asks the hub for the weights, the text tower or the tokenizer."""
    import open_clip

    name = config.model.partition(":")[2]
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    tags = open_clip.pretrained.list_pretrained_tags_by_model(name)
    from_hub = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    return config.weights in tags or bool(from_hub)


def add_in_float32(visual: Any) -> None:
    """Keep the residual sums of a vision transformer in float32 while its products are in bf16.

    Other image towers are not changed. Without this function the residual sums have the type of
    the first convolution's output. If that type is bf16, a forward pass of ViT-B/32 on two cores
    takes 55 ms per image instead of 32, and the error of the vectors is five times as large.
    """
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        visual.conv1.register_forward_hook(lambda module, given, sums: sums.float())


def _named_quick_gelu(config: EmbedConfig) -> bool | None:
    """Return whether weights listed by `namedmask weights` need QuickGELU; None for other weights.

    Raises:
        ConfigError: the weights belong to another model and would silently give wrong vectors.
    """
    if config.weights not in known_weights():
        return None
    when = known_weights()[config.weights].when
    models = [model for key, names in when.items() if key.endswith(".model") for model in names]
    if config.model not in models:
        raise ConfigError(
            f"embed.weights '{config.weights}' are not those of embed.model '{config.model}'; they "
            f"belong to {' or '.join(models) or 'no embedder'}. Change one of the two settings."
        )
    return f"{config.model.removesuffix('-quickgelu')}-quickgelu" in models


POSITIONS = ("visual.positional_embedding", "positional_embedding")
"""Keys of the position embeddings of images and of texts.

If a file has another number of them than the model, open_clip interpolates without a warning."""


def _refuse_interpolation(model: Any, path: Path, name: str) -> None:
    """Raise CheckpointError if the file and the model differ in their number of positions."""
    from namedmask.weights.tensors import read_tensors

    tree = {} if path.suffix in (".npz", ".npy") else read_tensors(path)
    state = tree.get("state_dict", tree)
    for key in POSITIONS:
        given, own = state.get(key, state.get(f"module.{key}")), model.state_dict().get(key)
        if given is not None and own is not None and given.shape != own.shape:
            raise CheckpointError(
                f"embed: weights '{path}' are for another image size or text length than "
                f"'{name}': {key} {tuple(given.shape)}, expected {tuple(own.shape)}. Set "
                "embed.model to the model of these weights."
            )


@contextmanager
def loading(weights: str) -> Iterator[None]:
    """Turn the errors of open_clip, torch and safetensors for bad weights into a CheckpointError.

    Raises:
        CheckpointError: the block raised one of these errors.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, StopIteration,
            EOFError, pickle.UnpicklingError, SafetensorError) as error:  # fmt: skip
        # torch's message is not shown, because it advises the user to run the code in the file
        reason = "it holds code, which is never run" if "weights_only" in str(error) else error
        raise CheckpointError(
            f"embed: weights '{weights}' cannot be loaded: {reason}. Expected a checkpoint of the "
            "model in embed.model. Without a network, download it elsewhere and set embed.weights "
            "to the file."
        ) from error
