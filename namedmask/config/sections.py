"""The sections of a run file: one frozen model each, one section per stage; see run_file.py.

A default that comes from the method says so; one that departs from it says why.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from namedmask.config.training_sections import (
    AugmentConfig,
    BaselinesConfig,
    EvaluateConfig,
    ExpertsConfig,
    SegmenterConfig,
    TrainConfig,
)
from namedmask.config.types import (
    Count,
    Folder,
    Hash,
    ModelSection,
    PoolSection,
    Section,
    Share,
    Source,
)


class RunConfig(Section):
    """Where the run lives and what holds for all of it."""

    preset: str = Field("", description="recipe whose values are the defaults; see presets.py")
    out: Folder = Field(description="run folder, or s3://bucket/prefix; made when missing")
    seed: int = Field(0, ge=0, description="seed of every random choice. Method: 0")
    threads: int = Field(0, ge=0, description="torch threads; 0: one for each core")
    wave_rows: Count = Field(2000, description="rows of metadata committed at a time")
    max_failure_share: Share = Field(1.0, description="failed rows over all rows that end the run")


class RayConfig(Section):
    """The cluster; all of it changes how a run is done, nothing what it makes."""

    address: str = Field("", description="a running Ray (auto, host:port); empty: one started here")
    num_cpus: int = Field(
        0, ge=0, description="CPUs a Ray started here may give out; 0: as many as the run needs"
    )
    object_store_mb: int = Field(0, ge=0, description="of a Ray started here; 0: Ray's own share")
    memory_limit_gb: float = Field(
        0.0, ge=0, description="an actor that asks for more fails; 0: 6/10 of the machine's memory"
    )
    heartbeat_s: float = Field(30.0, gt=0, description="between two lines about what waits")
    stall_timeout_s: float = Field(
        900.0, gt=0, description="without any progress the run ends, with a diagnosis"
    )


class CategoryConfig(Section):
    """What one category is asked for beside its query, and what it must not get."""

    queries: tuple[str, ...] = Field((), description="more texts; the mean of all is asked for")
    examples: tuple[str, ...] = Field(
        (), description="image files, also on s3://; each counts as one more text"
    )
    negatives: tuple[str, ...] = Field(
        (), description="texts; an image closer to one of them than to what is asked is dropped"
    )
    vetoed: tuple[str, ...] = Field((), description="sample ids that the next best replaces")
    blocked_urls: tuple[str, ...] = ()
    blocked_hosts: tuple[str, ...] = Field((), description="with all names below them")
    blocked_hashes: tuple[Hash, ...] = Field(
        (), description="16 hex digits, see images.hash_of; within retrieve.hash_distance bits"
    )


class CategoriesConfig(Section):
    """What to segment: a category set by name or path, or names written here."""

    set: str = Field("", description="name of a shipped category set, or a path to a TOML file")
    names: tuple[str, ...] = Field((), description="label names, when no set is given")
    templates: tuple[str, ...] = Field(
        (), description="prompt templates with one {}; empty: the method's 85"
    )
    each: dict[str, CategoryConfig] = Field({}, description="by label name: see CategoryConfig")


class MetadataConfig(PoolSection):
    """Which images there are, and which the metadata alone rules out."""

    source: tuple[Source, ...] = Field(
        (),
        description="parquet or CSV files, also on s3://, globs, http(s) urls of tables, or one "
        "image folder",
    )
    max_punsafe: Share = Field(0.5, description="rows above are `unsafe`. Method: safe mode, 0.5")
    unknown_punsafe: Literal["keep", "drop"] = Field(
        "keep", description="rows without a punsafe value or NSFW tag"
    )
    min_similarity: float = Field(
        -1.0, ge=-1, le=1, description="of image and caption; -1: any. Method: none"
    )
    max_similarity: float = Field(1.0, ge=-1, le=1, description="a row without one passes both")
    max_pwatermark: Share = Field(1.0, description="1: no watermark filter. Method: none")
    min_side: int = Field(0, ge=0, description="pixels; on both sides. Method: none")
    max_aspect: float = Field(0.0, ge=0.0, description="long over short side; 0: any. Method: none")
    max_rows: int = Field(0, ge=0, description="read at most this many rows; 0: all")


class VectorsConfig(Section):
    """Vectors that somebody published, in place of the run's own."""

    source: Source = Field("", description="folder in clip-retrieval's layout; empty: none")
    proof_images: Count = Field(100, description="embedded first: is embed.model theirs?")
    proof_cosine: float = Field(0.9, ge=-1, le=1, description="their median may not be below it")
    unchanged_cosine: float = Field(0.8, ge=-1, le=1, description="below: `content_changed`")


class FetchConfig(PoolSection):
    """How urls become bytes."""

    timeout_s: float = Field(
        20.0, gt=0, description="deadline of one try at a url, redirects included"
    )
    max_bytes: Count = Field(20_000_000, description="of one response body")
    max_pixels: Count = Field(50_000_000, description="of one decoded image")
    max_redirects: int = Field(5, ge=0)
    retries: int = Field(1, ge=0, description="of transient failures only")
    in_flight: Count = Field(128, description="requests at once")
    per_host: Count = Field(16, description="requests at once to one host, of each process")
    processes: int = Field(
        1, ge=0, description="processes of the plain loop, a core and in_flight each; 0: all cores"
    )
    max_pause_s: float = Field(
        30.0, ge=0, description="a host's Retry-After may hold it up so long; then it is given up"
    )
    longest_side: int = Field(0, ge=0, description="shrink larger images to this; 0: bytes as is")
    honor_opt_out: bool = Field(True, description="X-Robots-Tag noai, noimageai, noml. Method: no")
    robots_txt: bool = Field(False, description="ask each site's robots.txt, and keep to it")
    user_agent: str = "NamedMask/0.1 (+https://github.com/namedmask/namedmask)"
    allow_loopback: bool = Field(False, description="let urls reach this machine: tests, demo")
    file_root: str = Field("", description="file:// urls are read below this folder; empty: none")

    @property
    def summary(self) -> str:
        """Requests at once, for the plan."""
        return f"{self.in_flight} requests at once"


class EmbedConfig(ModelSection):
    """Image bytes and category names into one vector space."""

    model: str = Field("miniworld", description="name in EMBEDDERS or a dotted path `pkg.mod:name`")
    weights: str = Field("", description="open_clip tag, file or name of `namedmask weights`")
    batch_size: Count = Field(64, description="forwards are padded to it: results do not vary")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="of the networks; auto: bf16 where device is cuda, float32 on a CPU, though "
        "one that multiplies in bf16 (AVX-512 BF16, AMX) is faster in it",
    )

    @property
    def summary(self) -> str:
        """Model and device, for the plan."""
        return f"{self.model} on {self.device}"


class RetrieveConfig(PoolSection):
    """Which images each category is offered."""

    archive_size: Count = Field(500, description="images wanted a category. Method: 500")
    overfetch: float = Field(1.5, ge=1.0, description="candidates tried first, over those wanted")
    candidates: Count = Field(3000, description="ranks kept a category. Method: the demo's 3,000")
    backend: Literal["exact", "faiss"] = Field("exact", description="a scan of all, or an index")
    index: Source = Field("", description="FAISS index file of the store's vectors, for 'faiss'")
    nprobe: int = Field(0, ge=0, description="lists an IVF index opens a query; 0: as in the file")
    top_up_rounds: int = Field(2, ge=0, description="more rounds when an archive is not full")
    near_duplicate_cosine: float = Field(
        0.94, ge=-1, le=1, description="a candidate as close to a better one is dropped; 1: off"
    )
    near_duplicates: Literal["greedy", "components"] = Field(
        "greedy",
        description="greedy: too close to an accepted one; components: to any, in chains. Method",
    )
    replenish_faces: bool = Field(
        True, description="an image with a face is replaced by the next best. Method: no"
    )
    violence_text: str = Field("", description="what violence looks like, in words; empty: off")
    violence_cosine: float = Field(
        0.25, ge=-1, le=1, description="a candidate at least this close to that text is dropped"
    )
    violence_prompts: Source = Field("", description=".npy of LAION's two prompts; empty: off")
    safety_head: Source = Field("", description="LAION's network, .npz or .pth; empty: off")
    safety_score: float = Field(0.5, description="`unsafe` above. Method: safe mode, 0.5")
    hash_distance: int = Field(0, ge=0, le=64, description="bits; see images.hash_of; 0: off")

    @property
    def summary(self) -> str:
        """Archive size, backend and near duplicates, for the plan."""
        found = f" of what {self.index} finds" if self.backend == "faiss" else ""
        cosine = self.near_duplicate_cosine
        duplicates = f"duplicates above {cosine}" if cosine < 1 else "duplicates kept"
        return f"{self.archive_size} per category{found}, {duplicates}"


class SearchConfig(Section):
    """The index that the verb `search` makes and asks."""

    kind: Literal["auto", "flat", "hnsw", "ivfsq", "ivfpq"] = Field(
        "auto", description="auto: flat up to 100,000 vectors, ivfsq up to 4 million, else ivfpq"
    )
    recall: float = Field(0.95, gt=0, le=1, description="of the exact best 50, when it is made")
    device: Literal["cpu", "cuda"] = Field("cpu", description="never falls back silently")


class FacesConfig(ModelSection):
    """Images with a face are dropped."""

    enabled: bool = Field(True, description="the method: on for LAION, off for ImageNet folders")
    detector: str = Field("miniworld", description="name in FACE_DETECTORS or a dotted path")
    weights: str = Field("", description="ONNX file or name of `namedmask weights`; empty: own")
    min_score: Share = Field(0.5, description="the seed gives none; InsightFace's default")
    nms_iou: Share = Field(0.4, description="overlap above which the weaker box goes. InsightFace")
    scales: tuple[float, ...] = Field(
        (1.0, 0.5), description="image's longest side over the detector's input; 0.5: close-ups"
    )

    @property
    def summary(self) -> str:
        """Detector and device, for the plan."""
        return f"{self.detector} on {self.device}"


class SaliencyConfig(ModelSection):
    """Which pixels stand out."""

    detector: str = Field("miniworld", description="name in DETECTORS or a dotted path")
    weights: str = Field("", description="file or name of `namedmask weights`; empty: own")
    batch_size: Count = 16
    min_share: Share = Field(0.005, description="smaller masks are `no_mask`. Method: 0")
    max_share: Share = Field(0.98, description="larger masks are `no_mask`. Method: 1")

    @property
    def summary(self) -> str:
        """Detector and device, for the plan."""
        return f"{self.detector} on {self.device}"


class BilateralConfig(PoolSection):
    """The pseudo-mask snapped to image edges. Method: all defaults (method of SelfMask)."""

    enabled: bool = True
    shorter_side: Count = Field(512, description="pixels every image is brought to. Method: 512")
    sigma_spatial: float = Field(16.0, gt=0)
    sigma_luma: float = Field(16.0, gt=0)
    sigma_chroma: float = Field(8.0, gt=0)
    smoothness: float = Field(256.0, gt=0, description="λ of the solver")
    confidence: float = Field(0.999, gt=0, le=1)
    cg_iterations: Count = 25

    @property
    def summary(self) -> str:
        """Steps of the solver, for the plan."""
        return f"{self.cg_iterations} steps"


class Sections(Section):
    """All sections of a run file; a new one is a class above and a field here."""

    run: RunConfig
    ray: RayConfig = RayConfig()
    categories: CategoriesConfig = CategoriesConfig()
    metadata: MetadataConfig = MetadataConfig()
    vectors: VectorsConfig = VectorsConfig()
    fetch: FetchConfig = FetchConfig()
    embed: EmbedConfig = EmbedConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    search: SearchConfig = SearchConfig()
    faces: FacesConfig = FacesConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    bilateral: BilateralConfig = BilateralConfig()
    augment: AugmentConfig = AugmentConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    experts: ExpertsConfig = ExpertsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    baselines: BaselinesConfig = BaselinesConfig()
