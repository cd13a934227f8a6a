"""A CLIP model of open_clip with the weights that a run file names, or the reason why not.

What open_clip would pass over is refused: positions of another image size, which it interpolates,
and an activation other than that which weights of a known name were trained with.
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
from namedmask.weights.catalogue import known_weights, path_of


def create_open_clip(config: EmbedConfig) -> Any:
    """Return the model behind `open_clip:NAME`, its weights loaded, on the CPU.

    Raises:
        ConfigError: no such model, or weights that are neither a tag of it nor a file.
        CheckpointError: the weights cannot be read, or are another model's.
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
            f"embed.weights '{config.weights}' is no file and no pretrained tag of {name}; "
            f"tags: {', '.join(tags) or 'none'}. Set it to one of them or to a checkpoint file."
        )
    if quick_gelu is None:  # without it open_clip only warns
        trained = open_clip.pretrained.get_pretrained_cfg(name, config.weights)
        quick_gelu = bool(trained.get("quick_gelu", False))
    with loading(config.weights):
        model = open_clip.create_model(name, pretrained=weights, force_quick_gelu=quick_gelu)
    if weights not in tags:
        _refuse_stretched(model, Path(weights), config.model)
    return model


def add_in_float32(visual: Any) -> None:
    """Keep the sums of open_clip's vision transformer in float32 where its products are in bf16.

    Other image towers stay as they are. The sums would have the type that its first convolution
    gives: in bf16 a forward of ViT-B/32 took 55 ms an image on two cores instead of 32, for vectors
    five times as far off.
    """
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        visual.conv1.register_forward_hook(lambda module, given, sums: sums.float())


def _named_quick_gelu(config: EmbedConfig) -> bool | None:
    """Return whether weights named as in `namedmask weights` want OpenAI's activation; else None.

    Raises:
        ConfigError: they are another model's, whose vectors would be wrong without a word.
    """
    if config.weights not in known_weights():
        return None
    when = known_weights()[config.weights].when
    models = [one for key, several in when.items() if key.endswith(".model") for one in several]
    if config.model not in models:
        raise ConfigError(
            f"embed.weights '{config.weights}' are not those of embed.model '{config.model}'; "
            f"expected {' or '.join(models) or 'none'}."
        )
    return f"{config.model.removesuffix('-quickgelu')}-quickgelu" in models


STRETCHED = ("visual.positional_embedding", "positional_embedding")
"""What open_clip interpolates without a word where a file is for another image size."""


def _refuse_stretched(model: Any, path: Path, name: str) -> None:
    """Raise CheckpointError where a file's positions are not as many as the model's."""
    from namedmask.weights.tensors import read_tensors

    tree = {} if path.suffix in (".npz", ".npy") else read_tensors(path)
    state = tree.get("state_dict", tree)
    for key in STRETCHED:
        given, own = state.get(key, state.get(f"module.{key}")), model.state_dict().get(key)
        if given is not None and own is not None and given.shape != own.shape:
            raise CheckpointError(
                f"embed: weights '{path}' are for another image size or text length than "
                f"'{name}': {key} {tuple(given.shape)}, expected {tuple(own.shape)}. Name their "
                "own model in embed.model."
            )


@contextmanager
def loading(weights: str) -> Iterator[None]:
    """Turn what open_clip, torch and safetensors raise for bad weights into a CheckpointError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, StopIteration,
            EOFError, pickle.UnpicklingError, SafetensorError) as error:  # fmt: skip
        # torch's own text advises to load the file with code and all, so it is not passed on
        reason = "it holds code, which is never run" if "weights_only" in str(error) else error
        raise CheckpointError(
            f"embed: weights '{weights}' cannot be loaded: {reason}. Expected a checkpoint of the "
            "model in embed.model. Without a network, download it elsewhere and set embed.weights "
            "to the file."
        ) from error
