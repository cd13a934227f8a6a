"""A small working setting of every registered part: weights made here, files of the right form.

A part that is registered without an entry here makes the contract tests fail, and they say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch

from namedmask.config import BaselinesConfig, EmbedConfig, FacesConfig, SaliencyConfig, Section
from namedmask.embed.open_clip import EMBEDDERS
from namedmask.evaluate.benchmarks import BENCHMARKS
from namedmask.evaluate.reco import ENCODERS
from namedmask.faces.detectors import FACE_DETECTORS
from namedmask.saliency.detectors import DETECTORS
from namedmask.saliency.selfmask import SelfMask
from namedmask.segmenter.deeplab import SEGMENTERS
from namedmask.verbs.baselines import BASELINES
from tests import trees
from tests.face_files import (
    mxnet_outputs,
    priors_outputs,
    write_file,
)
from tests.golden import golden_weights
from tests.white_faces import write_detector

Maker = Callable[[Path], Section]
"""Folder for files → the config section of a part that works."""


def _tiny_open_clip(folder: Path) -> EmbedConfig:
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 16}
    model = folder / "namedmask-test-contract.json"
    model.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(model)
    torch.manual_seed(0)
    made = open_clip.create_model(model.stem)
    torch.save(made.state_dict(), folder / "clip.pt")
    name, weights = f"open_clip:{model.stem}", str(folder / "clip.pt")
    return EmbedConfig(model=name, weights=weights, batch_size=4)


def _face_file(folder: Path, detector: str, *written: Any) -> FacesConfig:
    path = write_file(folder / f"{detector}.onnx", *written)
    return FacesConfig(detector=detector, weights=str(path))


def _selfmask(folder: Path) -> SaliencyConfig:
    with torch.device("meta"):
        model = SelfMask()
    golden_weights(model.to_empty(device="cpu"))
    torch.save(model.state_dict(), folder / "selfmask.pt")
    # with made weights any mask is plausible
    return SaliencyConfig(
        detector="selfmask", weights=str(folder / "selfmask.pt"), min_share=0, max_share=1
    )


def _tokencut(folder: Path) -> SaliencyConfig:
    with torch.device("meta"):
        encoder = SelfMask().encoder  # a DINO ViT-S/8 in all but the numbers
    golden_weights(encoder.to_empty(device="cpu"))
    state = encoder.state_dict()
    for key, value in state.items():  # a patch is what it shows, hardly where it is and who is near
        if "attn.proj" in key or "mlp.fc2" in key:
            value *= 0.01
        elif key in ("pos_embed", "blocks.11.attn.qkv.bias", "blocks.11.norm1.bias"):
            value *= 0
    torch.save(state, folder / "dino.pt")
    return SaliencyConfig(
        detector="tokencut", weights=str(folder / "dino.pt"), min_share=0, max_share=1
    )


def _timm(folder: Path) -> BaselinesConfig:
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    state = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    torch.save(state, folder / "vit.pth")
    return BaselinesConfig(encoder=f"timm:{name}", encoder_weights=str(folder / "vit.pth"))


@dataclass(frozen=True)
class Registry:
    """A registry of the package, and how each of its entries is set up for a test."""

    entries: Mapping[str, Any]
    makers: Mapping[str, Maker | Callable[[Path], Path]]


REGISTRIES = {
    "embedder": Registry(
        EMBEDDERS,
        {"miniworld": lambda _: EmbedConfig(batch_size=4), "open_clip:": _tiny_open_clip},
    ),
    "face detector": Registry(
        FACE_DETECTORS,
        {
            "miniworld": lambda _: FacesConfig(),
            "scrfd": lambda folder: FacesConfig(
                detector="scrfd", weights=str(write_detector(folder / "scrfd.onnx"))
            ),
            "retinaface_priors": lambda folder: _face_file(
                folder, "retinaface_priors", priors_outputs(known=())
            ),
            "retinaface_mxnet": lambda folder: _face_file(
                folder, "retinaface_mxnet", mxnet_outputs(known=())
            ),
        },
    ),
    "saliency detector": Registry(
        DETECTORS,
        {
            "miniworld": lambda _: SaliencyConfig(batch_size=4),
            "selfmask": _selfmask,
            "tokencut": _tokencut,
        },
    ),
    "segmenter": Registry(SEGMENTERS, {}),  # a segmenter needs no file
    "encoder": Registry(ENCODERS, {"miniworld": lambda _: BaselinesConfig(), "timm:": _timm}),
    "benchmark": Registry(
        BENCHMARKS,
        {
            "cityscapes_object": trees.cityscapes_tree,
            "coca": trees.coca_tree,
            "coco2017": trees.coco_tree,
            "folder": trees.folder_tree,
            "miniworld": trees.folder_tree,
            "voc2012": trees.voc_tree,
            **{
                f"imagenet_s_{count}": partial(trees.imagenet_s_tree, count=count)
                for count in (50, 300, 919)
            },
        },
    ),
    "baseline": Registry(BASELINES, {}),
}


def setting_of(kind: str, name: str, folder: Path) -> Any:
    """Return the config section, or for a benchmark the root, of a registered part.

    Raises:
        AssertionError: the part was registered, and nobody said here how to set it up.
    """
    makers = REGISTRIES[kind].makers
    assert name in makers, f"{kind} '{name}' is registered; add how to set it up to tests/parts.py"
    return makers[name](folder)
