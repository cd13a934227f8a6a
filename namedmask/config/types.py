"""Value types of config keys, and the base classes of the sections of a run file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator

from namedmask.storage import Place, place_of
from namedmask.storage.s3 import S3Path

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^{}]*)\})")


def expanded(path: str) -> str:
    """Return a path with `~` and `$VARIABLE` replaced as a shell does; a url stays as it is.

    Raises:
        ValueError: a variable is not set, a home folder is not known, or the path cannot exist.
    """
    if "\0" in path:
        raise ValueError("a path cannot hold the character NUL")
    if _URL.match(path):
        return path
    path = _VARIABLE.sub(_value, path)
    home = os.path.expanduser(path)
    if path.startswith("~") and home == path:
        name = path.partition("/")[0]
        raise ValueError(
            f"the home folder {name!r} is not known: set the variable HOME, or write the whole "
            "path; './~' is a folder of this name"
        )
    return home


def _value(variable: re.Match[str]) -> str:
    name = variable[1] or variable[2]
    if name not in os.environ:
        raise ValueError(
            f"the environment variable {name!r} is not set: set it, or write the whole path"
        )
    return os.environ[name]


def _place(value: object) -> Place:
    if isinstance(value, str) and value.strip():
        return place_of(expanded(value))
    if isinstance(value, Path | S3Path):
        return value
    raise ValueError("expected the path of a folder, or s3://bucket/prefix; '.' is this folder")


def _source(text: str) -> str:
    text = expanded(text)
    place_of(text)  # raises for an s3:// url that has no bucket, or has credentials in it
    return text


def _text(place: Place) -> str:
    text = str(place)
    return f"./{text}" if text.startswith("~") else text  # else it would be a home folder


Folder = Annotated[Place, PlainValidator(_place), PlainSerializer(_text, return_type=str)]
"""Folder to write to; `~` and `$VARIABLE` are replaced."""
Source = Annotated[str, AfterValidator(_source)]
"""Path, url, or name of weights; `~` and `$VARIABLE` are replaced in a path."""


class Section(pydantic.BaseModel):
    """A section of a run file, which is frozen and refuses unknown keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    @property
    def summary(self) -> str:
        """Return the choices of the section in a few words, for the plan."""
        return ""


class PoolSection(Section):
    """A section whose stage runs in a pool of actors on Ray."""

    actors: tuple[Count, Count] = Field(
        (1, 1), description="Minimum and maximum number of actors on Ray."
    )
    num_cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves per actor.")

    @property
    def reserved_gpus(self) -> float:
        """Return the number of GPUs that Ray reserves per actor."""
        return 0.0


class ModelSection(PoolSection):
    """A section whose stage runs a network."""

    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Device of the network: `cpu` or `cuda`; a missing GPU is an error."
    )
    num_gpus: float = Field(
        1.0, ge=0, description="GPUs that Ray reserves per actor, if the device is `cuda`."
    )

    @property
    def reserved_gpus(self) -> float:
        """Return the number of GPUs that Ray reserves per actor."""
        return self.num_gpus if self.device == "cuda" else 0.0
