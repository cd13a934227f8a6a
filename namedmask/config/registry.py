"""Resolution of names in a run file: of factories by registry or dotted path, and of devices."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from namedmask.errors import ConfigError, InputError, unknown_name

if TYPE_CHECKING:
    import torch


F = TypeVar("F", bound=Callable[..., object])


def resolve(kind: str, name: str, registry: Mapping[str, F]) -> F:
    """Return the factory called `name`: an entry of `registry`, or the object at `pkg.mod:name`.

    A registry key that ends in a colon matches every name that starts with it, so the entry
    `open_clip:` is the factory of `open_clip:ViT-L-14`; the factory reads the rest of the name.

    Args:
        kind: what the name stands for, for error messages.
        name: the name in the run file.
        registry: factories by name.

    Raises:
        ConfigError: the name is neither in the registry nor a dotted path, or the module cannot be
            imported or lacks the object.
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
            f"{kind} '{name}': module '{head}' cannot be imported: {error}. Install the "
            f"plug-in or put it on PYTHONPATH; known without it: {', '.join(sorted(registry))}."
        ) from error
    try:
        factory: F = getattr(module, attribute)
    except AttributeError:
        raise unknown_name(f"{kind} of module '{head}'", attribute, _public(module)) from None
    return factory


def made(
    kind: str, name: str, registry: Mapping[str, F], config: object, needs: Sequence[str]
) -> Any:
    """Return what the factory called `name` makes of a config section.

    Args:
        kind: what the name stands for, for error messages.
        name: the name in the run file.
        registry: factories by name.
        config: the only argument of the factory.
        needs: attributes that the result must have.

    Raises:
        ConfigError: as `resolve`; the factory cannot be called, or its result lacks an attribute.
    """
    factory = resolve(kind, name, registry)
    result = factory(config) if callable(factory) else factory
    if lacking := [need for need in needs if not hasattr(result, need)]:
        raise ConfigError(
            f"{kind} '{name}' is a {type(result).__name__} without {', '.join(lacking)}; expected "
            f"a function that takes the config section and returns an object with "
            f"{', '.join(needs)}."
        )
    return result


def torch_device(name: str, place: str) -> torch.device:
    """Return the torch device `name`, without a fallback to another device.

    Args:
        name: `cpu` or `cuda`.
        place: the config section of the key `device`, for error messages.

    Raises:
        InputError: `name` is another device, or is "cuda" and torch sees no CUDA device.
    """
    import torch

    if name not in ("cpu", "cuda"):
        raise InputError(f"{place}.device is '{name}'; expected 'cpu' or 'cuda'.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"{place}.device is 'cuda', but torch {torch.__version__} sees no CUDA device here. "
            f"Set {place}.device to 'cpu', or run on a machine with a GPU."
        )
    return torch.device(name)


def _public(module: object) -> list[str]:
    """Return the names of a module's public callables, including lazily loaded ones."""
    names = (name for name in dir(module) if name[0] != "_")
    return [name for name in names if callable(getattr(module, name, None))]
