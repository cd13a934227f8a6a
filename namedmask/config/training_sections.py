"""The sections for image checks, training and evaluation; sections.py has all other sections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from namedmask.config.types import Count, ModelSection, PoolSection, Section, Share, Source


class FacesConfig(ModelSection):
    """The face filter: images that show a face are dropped."""

    enabled: bool = Field(
        True, description="Drop images with a face. Method: yes for LAION, no for ImageNet folders"
    )
    detector: str = Field(
        "miniworld",
        description="`miniworld`, `scrfd`, `retinaface_priors`, `retinaface_mxnet`, or a dotted "
        "path `pkg.mod:name`.",
    )
    weights: Source = Field(
        "", description="ONNX file, or name of `namedmask weights`; empty: miniworld's own."
    )
    min_score: Share = Field(
        0.5, description="Lowest score of a face, InsightFace's value. Method: not known"
    )
    nms_iou: Share = Field(
        0.4, description="IoU above which the weaker of two boxes is dropped, InsightFace's value."
    )
    scales: tuple[float, ...] = Field(
        (1.0, 0.5),
        description="Ratios of the image's longest side to the side of the detector's input, one "
        "detection each; 0.5 finds faces that fill the image.",
    )

    @property
    def summary(self) -> str:
        """Return detector and device, for the plan."""
        return f"{self.detector} on {self.device}"


class SaliencyConfig(ModelSection):
    """The saliency detector, whose thresholded map is the pseudo-mask."""

    detector: str = Field(
        "miniworld",
        description="`miniworld`, `selfmask`, `tokencut`, or a dotted path `pkg.mod:name`.",
    )
    weights: Source = Field(
        "", description="File, or name of `namedmask weights`; empty: miniworld's own."
    )
    batch_size: Count = Field(16, description="Maximum number of images per forward pass.")
    min_share: Share = Field(
        0.005,
        description="Smallest share of an image that a mask covers, else `no_mask`. Method: 0",
    )
    max_share: Share = Field(
        0.98, description="Largest share of an image that a mask covers, else `no_mask`. Method: 1"
    )

    @property
    def summary(self) -> str:
        """Return detector and device, for the plan."""
        return f"{self.detector} on {self.device}"


class BilateralConfig(PoolSection):
    """The solver that snaps a pseudo-mask to image edges. Method: all defaults (SelfMask's)."""

    enabled: bool = Field(
        True, description="Run the solver; false: the pseudo-mask is the thresholded saliency map."
    )
    shorter_side: Count = Field(
        512, description="Pixels to which each image's shorter side is resized. Method: 512"
    )
    sigma_spatial: float = Field(16.0, gt=0, description="Side of a grid cell, in pixels.")
    sigma_luma: float = Field(16.0, gt=0, description="Extent of a grid cell in luma (0 to 255).")
    sigma_chroma: float = Field(
        8.0, gt=0, description="Extent of a grid cell in chroma (0 to 255)."
    )
    smoothness: float = Field(256.0, gt=0, description="Weight λ of the smoothness term.")
    confidence: float = Field(
        0.999, gt=0, le=1, description="Weight of the agreement with the pseudo-mask, in (0, 1]."
    )
    cg_iterations: Count = Field(25, description="Maximum number of conjugate gradient steps.")

    @property
    def summary(self) -> str:
        """Return the maximum number of solver steps, for the plan."""
        return f"{self.cg_iterations} steps"


class AugmentConfig(Section):
    """The random augmentation of training samples. Method: all defaults."""

    crop: Count = Field(384, description="Side of the square crop, in pixels.")
    scale: tuple[float, float] = Field(
        (0.1, 1.0), description="Range of the random scale, relative to the image's own size."
    )
    flip: Share = Field(0.5, description="Probability of a horizontal flip.")
    jitter: Share = Field(0.8, description="Probability of color jitter.")
    grayscale: Share = Field(0.2, description="Probability of conversion to gray.")
    blur: Share = Field(0.5, description="Probability of Gaussian blur.")
    n_max: Count = Field(
        2,
        description="Maximum number of images that copy-paste combines per sample; 1: off.",
    )
    on_device: bool = Field(
        False, description="Compute colors and copy-paste per batch, on the training device."
    )


class SegmenterConfig(Section):
    """The network of the experts and of the final segmenter."""

    name: str = Field(
        "deeplabv3plus_resnet50",
        description="`deeplabv3plus_resnet50`, `deeplabv3plus_resnet101`, `deeplabv3plus_tiny`, or "
        "a dotted path `pkg.mod:name`.",
    )
    backbone_weights: Source = Field(
        "",
        description="Initial weights of the backbone: a file, a name of `namedmask weights`, or "
        "`miniworld`; empty: random.",
    )


class OptimConfig(Section):
    """The optimization of one network. Method: Adam, poly schedule, L2-style decay."""

    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Device of the training: `cpu` or `cuda`; a missing GPU is an error."
    )
    iterations: Count = Field(20_000, description="Number of training steps.")
    batch_size: Count = Field(16, description="Samples per step, in all processes.")
    lr_head: float = Field(5e-4, gt=0, description="Initial learning rate outside the backbone.")
    lr_backbone: float = Field(5e-5, gt=0, description="Initial learning rate of the backbone.")
    lr_floor: float = Field(1e-6, ge=0, description="Lowest learning rate of the schedule.")
    power: float = Field(0.9, gt=0, description="Exponent of the poly schedule.")
    weight_decay: float = Field(2e-4, ge=0, description="L2 decay of all weights.")
    sample_processes: int = Field(
        0,
        ge=0,
        description="Processes that make samples, per training process; 0: a thread makes them, or "
        "1 process if `train` runs on Ray.",
    )

    @property
    def reserved_gpus(self) -> float:
        """Return the number of GPUs that Ray reserves per training process."""
        return 1.0 if self.device == "cuda" else 0.0

    @property
    def summary(self) -> str:
        """Return number of steps, batch size and device, for the plan."""
        return f"{self.iterations:,} × {self.batch_size} on {self.device}"


class ExpertsConfig(OptimConfig):
    """The experts: one short training per category on its own archive, without copy-paste."""

    enabled: bool = Field(
        True, description="Train experts that redraw the masks; false: keep the pseudo-masks."
    )
    iterations: Count = Field(5000, description="Training steps per expert. Method: 5,000")
    clusters: int = Field(
        0,
        ge=0,
        description="Number of experts, each for a cluster of categories with similar names; 0: "
        "one expert per category.",
    )
    shared_iterations: int = Field(
        0,
        ge=0,
        description="Steps of a shared expert on all categories, from which each expert starts; 0: "
        "no shared expert. Method: 0",
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="Probability above which a pixel is in the mask. Method: 0.5"
    )
    mirror: bool = Field(
        False, description="Average the predictions for an image and its mirror image. Method: no"
    )
    keep_unseen: bool = Field(
        True, description="If the expert predicts no object, keep the pseudo-mask. Method: no"
    )
    snap: bool = Field(
        False, description="Run the bilateral solver on the expert's masks as well. Method: no"
    )
    batch_size: Count = Field(8, description="Samples per step. Method: 8")
    num_cpus: float = Field(1.0, gt=0, description="CPUs that Ray reserves per expert.")
    num_gpus: float = Field(
        1.0,
        gt=0,
        description="GPUs that Ray reserves per expert, if the device is `cuda`; 0.25: four "
        "experts share one GPU.",
    )

    @property
    def reserved_gpus(self) -> float:
        """Return the number of GPUs that Ray reserves per expert."""
        return self.num_gpus if self.device == "cuda" else 0.0


class TrainConfig(OptimConfig):
    """The training of the segmenter on all archives."""

    start: Source = Field(
        "",
        description="Checkpoint whose weights the training starts from; its categories may differ; "
        "empty: none.",
    )
    checkpoint_every: Count = Field(
        1000, description="Steps between two checkpoints; a crash loses at most this many steps."
    )
    processes: Count = Field(1, description="Training processes on Ray; they share each batch.")
    sync_batch_norm: bool = Field(
        False,
        description="Batch norm over the whole batch, not per process; GPUs only.",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="Number of dead training processes that Ray replaces before the run fails.",
    )


class EvaluateConfig(ModelSection):
    """The benchmark on which the segmenter is scored."""

    benchmark: str = Field(
        "",
        description="`voc2012`, `coco2017`, … (docs/guide.md lists all), or a dotted path "
        "`pkg.mod:name`; empty: none.",
    )
    root: Source = Field("", description="Folder of the benchmark, in its published layout.")
    split: str = Field("val", description="Split of the benchmark, such as `val` or `test`.")
    max_side: int = Field(
        0,
        ge=0,
        description="Longest side in pixels of images to predict on; larger images are shrunk; 0: "
        "original size. Method: original size",
    )
    export: Source = Field(
        "",
        description="Folder for all predictions in ImageNet-S's format (PNG, label id R + 256 G); "
        "empty: none.",
    )

    @property
    def summary(self) -> str:
        """Return benchmark and split, for the plan."""
        return f"{self.benchmark} {self.split}"


class BaselinesConfig(Section):
    """The baselines MaskCLIP and ReCo, which run on evaluate.device."""

    model: str = Field(
        "miniworld",
        description="CLIP model: `miniworld`, or a ResNet or ViT of open_clip, such as "
        "`open_clip:RN50-quickgelu`.",
    )
    weights: Source = Field(
        "",
        description="CLIP weights: open_clip tag, file, or name of `namedmask weights`; empty: "
        "miniworld's own. Method: OpenAI's RN50, RN50x16",
    )
    shorter_side: int = Field(
        512,
        ge=0,
        description="Shorter side in pixels to which images are resized, with a longer side of at "
        "most 2048; 0: original size. Method: 512 (MaskCLIP)",
    )
    normalization: Literal["imagenet", "clip"] = Field(
        "imagenet",
        description="Mean and deviation that normalize CLIP's input: `imagenet`, or `clip` as in "
        "CLIP's training. Method: imagenet",
    )
    temperature: float = Field(
        100.0,
        gt=0,
        description="MaskCLIP: factor on the cosines before the softmax. Method: not known",
    )
    denoise: Share = Field(
        0.0,
        description="MaskCLIP: drop a category from an image in which its probability is below "
        "this everywhere; 0: off. Method: 0",
    )
    smooth: Share = Field(
        0.0,
        description="MaskCLIP: average a position with similar positions if its best probability "
        "is below this; 0: off. Method: 0",
    )
    encoder: str = Field(
        "miniworld",
        description="ReCo: image encoder, `miniworld`, a model of timm such as "
        "`timm:vit_small_patch16_224`, or a dotted path `pkg.mod:name`.",
    )
    encoder_weights: Source = Field(
        "",
        description="ReCo: weights of the encoder, a file or a name of `namedmask weights`; empty: "
        "miniworld's own. Method: DeiT-S/16, trained on stylized ImageNet",
    )
    images: Count = Field(50, description="ReCo: best-ranked images per archive to use. Method: 50")
    crop: Count = Field(
        224, description="ReCo: side of the center crop of archive images, in pixels. Method: 224"
    )
    context: Source = Field(
        "",
        description="ReCo: archive folder of context categories (sky, road, …). Positions similar "
        "to them count less; empty: none.",
    )
    post: Literal["none", "softmax", "crf"] = Field(
        "crf",
        description="ReCo: step after the products of similarities: `none`, `softmax`, or `crf` "
        "(softmax, then a dense CRF). Method: crf",
    )
    scale: float = Field(
        100.0,
        gt=0,
        description="ReCo: factor on the products before the softmax. Method: not known",
    )
