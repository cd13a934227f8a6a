"""The sections that shape training and evaluation; see sections.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from namedmask.config.types import Count, ModelSection, Section, Share, Source


class AugmentConfig(Section):
    """Training samples. Method: all defaults."""

    crop: Count = Field(384, description="side of the square crop, pixels")
    scale: tuple[float, float] = (0.1, 1.0)
    flip: Share = 0.5
    jitter: Share = 0.8
    grayscale: Share = 0.2
    blur: Share = 0.5
    n_max: Count = Field(2, description="images in one sample at most; 1: no copy-paste")
    on_device: bool = Field(
        False, description="colors and pasting by whole batches, on the device that trains"
    )


class SegmenterConfig(Section):
    """The network of the experts and of the final segmenter."""

    name: str = Field("deeplabv3plus_resnet50", description="name in SEGMENTERS or a dotted path")
    backbone_weights: str = Field(
        "", description="file, name of `namedmask weights`; empty: random"
    )


class OptimConfig(Section):
    """One optimization. Method: Adam, poly schedule, L2-style decay."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="never falls back silently")
    iterations: Count = 20_000
    batch_size: Count = 16
    lr_head: float = Field(5e-4, gt=0)
    lr_backbone: float = Field(5e-5, gt=0)
    lr_floor: float = Field(1e-6, ge=0)
    power: float = Field(0.9, gt=0)
    weight_decay: float = Field(2e-4, ge=0)
    sample_processes: int = Field(
        0, ge=0, description="processes that make samples; 0: a thread; on Ray at least 1"
    )

    @property
    def reserved_gpus(self) -> float:
        """GPUs that Ray keeps for each process."""
        return 1.0 if self.device == "cuda" else 0.0

    @property
    def summary(self) -> str:
        """Steps, batch and device, for the plan."""
        return f"{self.iterations:,} × {self.batch_size} on {self.device}"


class ExpertsConfig(OptimConfig):
    """One small training a category, on its own archive, without copy-paste."""

    enabled: bool = True
    iterations: Count = Field(5000, description="Method: 5,000")
    clusters: int = Field(
        0, ge=0, description="experts for all, each of a cluster of categories; 0: one a category"
    )
    shared_iterations: int = Field(
        0, ge=0, description="steps on all categories at once, where each then starts. Method: 0"
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="probability from which a pixel is the thing. Method: 0.5"
    )
    mirror: bool = Field(False, description="average with the mirror image's. Method: no")
    keep_unseen: bool = Field(
        True, description="where it sees nothing the pseudo-mask stays, for no mask. Method: no"
    )
    snap: bool = Field(False, description="the solver after the expert as well. Method: no")
    batch_size: Count = Field(8, description="Method: 8")
    num_cpus: float = Field(1.0, gt=0, description="cores that Ray keeps for each expert")
    num_gpus: float = Field(
        1.0, gt=0, description="GPUs that Ray keeps for each expert on 'cuda'; 0.25: four share one"
    )

    @property
    def reserved_gpus(self) -> float:
        """GPUs that Ray keeps for each expert."""
        return self.num_gpus if self.device == "cuda" else 0.0


class TrainConfig(OptimConfig):
    """The segmenter over all archives."""

    start: str = Field(
        "", description="checkpoint to go on from, of these or other categories; empty: none"
    )
    checkpoint_every: Count = 1000
    processes: Count = Field(1, description="processes that share each step, on Ray")
    sync_batch_norm: bool = Field(
        False, description="statistics over the whole batch, not each process's share; GPUs only"
    )
    max_failures: int = Field(3, ge=0, description="lost processes that are replaced, on Ray")


class EvaluateConfig(ModelSection):
    """What to judge the segmenter on."""

    benchmark: str = Field("", description="name in BENCHMARKS or a dotted path; empty: none")
    root: str = Field("", description="folder of the benchmark, in its published layout")
    split: str = Field("val")
    max_side: int = Field(0, ge=0, description="0: original size. Method: original size")
    export: Source = Field(
        "", description="folder for every prediction as ImageNet-S wants them; empty: none"
    )

    @property
    def summary(self) -> str:
        """Benchmark and split, for the plan."""
        return f"{self.benchmark} {self.split}"


class BaselinesConfig(Section):
    """MaskCLIP and ReCo, which the segmenter is held against; they run where `evaluate` does."""

    model: str = Field("miniworld", description="an open_clip model, as in embed.model")
    weights: str = Field("", description="as in embed.weights. Method: OpenAI's RN50, RN50x16")
    shorter_side: int = Field(
        512,
        ge=0,
        description="pixels every image is brought to; 0: its own. Method: 512 (MaskCLIP)",
    )
    normalization: Literal["imagenet", "clip"] = Field(
        "imagenet", description="of CLIP's images. Method: imagenet, though CLIP learnt on its own"
    )
    temperature: float = Field(
        100.0, gt=0, description="cosines times this go into MaskCLIP's softmax. Method: not known"
    )
    denoise: Share = Field(0.0, description="categories that reach this nowhere go. Method: 0, off")
    smooth: Share = Field(0.0, description="pixels below it ask those alike. Method: 0, off")
    encoder: str = Field(
        "miniworld", description="ReCo's features: name in ENCODERS (timm:…) or a dotted path"
    )
    encoder_weights: str = Field("", description="its weights file. Method: DeiT-S/16, stylized")
    images: Count = Field(50, description="of each archive that ReCo looks at. Method: 50")
    crop: Count = Field(224, description="pixels of their center crop. Method: 224")
    context: Source = Field(
        "", description="archive folder of what is not looked for (sky, road, …); empty: none"
    )
    post: Literal["none", "softmax", "crf"] = Field(
        "crf", description="what becomes of ReCo's products. Method: crf"
    )
    scale: float = Field(
        100.0, gt=0, description="products times this go into the softmax. Method: not known"
    )
