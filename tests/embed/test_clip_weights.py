"""CLIP models with the weights a run names: see also test_embed.py and test_weights.py."""

from __future__ import annotations

import pytest

from namedmask.config import EmbedConfig
from namedmask.embed.clip_weights import create_open_clip, loading
from namedmask.errors import CheckpointError, ConfigError


def test_loading_tells_the_reason_but_not_torchs_advice() -> None:
    told = pytest.raises(CheckpointError, match=r"weights 'a\.pt' cannot be loaded: cut short")
    with told, loading("a.pt"):
        raise ValueError("cut short")
    hidden = pytest.raises(CheckpointError, match="holds code, which is never run")
    with hidden as error, loading("a.pt"):
        raise RuntimeError("set weights_only=False")
    assert "weights_only" not in str(error.value)
    with pytest.raises(ZeroDivisionError), loading("a.pt"):
        raise ZeroDivisionError


def test_create_open_clip_of_no_model_or_no_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ViT-B-32'"):
        create_open_clip(EmbedConfig(model="open_clip:ViT-B32", weights="openai"))
    with pytest.raises(ConfigError, match="is neither a file nor a pretrained tag of ViT-B-32"):
        create_open_clip(EmbedConfig(model="open_clip:ViT-B-32", weights="nowhere.pt"))
