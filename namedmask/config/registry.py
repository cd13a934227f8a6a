"""What a run file names: a factory in a registry or behind a dotted path, and a device."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from namedmask.errors import ConfigError, InputError, unknown_name

if TYPE_CHECKING:
    import torch


F = TypeVar("F", bound=Callable[..., object])


def resolve(kind: str, name: str, registry: Mapping[str, F]) -> F:
    """Return the factory called `name`: an entry of `registry`, or what `pkg.mod:name` points at.

    A registry key that ends in a colon takes the rest of the name as its argument, so that
    `open_clip:ViT-L-14` is the entry `open_clip:`.

    Raises:
        ConfigError: no such entry; or the module cannot be imported or lacks the name.
    """
    head, colon, attribute = name.partition(":")
    for key in (name, head + colon):
        if key in registry:
            return registry[key]
    if not attribute or not all(part.isidentifier() for part in head.split(".")):
        raise unknown_name(kind, name, registry)
    try:
        module = importlib.import_module(head)
    except ImportError as error:
        raise ConfigError(
            f"{kind} '{name}': module '{head}' cannot be imported: {error}. A plug-in must be "
            f"installed or on PYTHONPATH; known without one: {', '.join(sorted(registry))}."
        ) from error
    try:
        factory: F = getattr(module, attribute)
    except AttributeError:
        raise unknown_name(f"{kind} of module '{head}'", attribute, _public(module)) from None
    return factory


def torch_device(name: str, place: str) -> torch.device:
    """Return the torch device of a config section; never another one than was asked for.

    Raises:
        InputError: `cuda` is asked for and torch sees none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"{place}.device is 'cuda', but torch {torch.__version__} sees no CUDA device here. "
            f"Set {place}.device to 'cpu', or run where there is one."
        )
    return torch.device(name)


def _public(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
