"""DeepLabv3+ segmenters, their checkpoints, and the prediction of label maps."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.segmenter.checkpoint import build_segmenter as build_segmenter
    from namedmask.segmenter.checkpoint import load_checkpoint as load_checkpoint
    from namedmask.segmenter.checkpoint import save_checkpoint as save_checkpoint
    from namedmask.segmenter.deeplab import SEGMENTERS as SEGMENTERS
    from namedmask.segmenter.deeplab import DeepLabV3Plus as DeepLabV3Plus
    from namedmask.segmenter.deeplab import deeplabv3plus_resnet50 as deeplabv3plus_resnet50
    from namedmask.segmenter.deeplab import deeplabv3plus_resnet101 as deeplabv3plus_resnet101
    from namedmask.segmenter.deeplab import deeplabv3plus_tiny as deeplabv3plus_tiny
    from namedmask.segmenter.predict import predict_labels as predict_labels

__all__ = [
    "SEGMENTERS",
    "DeepLabV3Plus",
    "build_segmenter",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
    "deeplabv3plus_tiny",
    "load_checkpoint",
    "predict_labels",
    "save_checkpoint",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DeepLabV3Plus": "deeplab",
        "SEGMENTERS": "deeplab",
        "build_segmenter": "checkpoint",
        "deeplabv3plus_resnet101": "deeplab",
        "deeplabv3plus_resnet50": "deeplab",
        "deeplabv3plus_tiny": "deeplab",
        "load_checkpoint": "checkpoint",
        "predict_labels": "predict",
        "save_checkpoint": "checkpoint",
    },
)
