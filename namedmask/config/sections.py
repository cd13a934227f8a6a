"""The sections of a run file, one frozen model per stage; run_file.py reads the file.

A field's description gives the unit, special values, and the paper's choice (`Method:`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from namedmask.config.collect_sections import FetchConfig, MetadataConfig, VectorsConfig
from namedmask.config.training_sections import (
    AugmentConfig,
    BaselinesConfig,
    BilateralConfig,
    EvaluateConfig,
    ExpertsConfig,
    FacesConfig,
    SaliencyConfig,
    SegmenterConfig,
    TrainConfig,
)
from namedmask.config.types import (
    Cosine,
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
    """The run folder, and the settings that all stages share."""

    preset: str = Field(
        "", description="Recipe that sets the defaults: `paper` or `voc_released`; empty: none."
    )
    out: Folder = Field(description="Run folder, or s3://bucket/prefix; created when missing.")
    seed: int = Field(0, ge=0, description="Seed of every random choice. Method: 0")
    threads: int = Field(0, ge=0, description="Torch threads per process; 0: one per CPU core.")
    memory_gb: float = Field(
        0.0,
        ge=0,
        description="Memory of a machine that the run may use, in GiB; 0: all that the system "
        "allows (cgroup, ulimit).",
    )
    wave_rows: Count = Field(
        2000, description="Metadata rows per wave, the unit of work that is committed and resumed."
    )
    max_failure_share: Share = Field(
        1.0, description="Share of failed rows above which the run ends with an error; 1: never."
    )


class RayConfig(Section):
    """The Ray cluster. These keys change how a run is executed, but not its results."""

    address: str = Field(
        "", description="Running Ray to use (`auto`, host:port); empty: $RAY_ADDRESS or a new Ray."
    )
    num_cpus: int = Field(
        0, ge=0, description="CPUs of a Ray that the run starts; 0: all cores, or more if needed."
    )
    object_store_mb: int = Field(
        0, ge=0, description="MiB of object store of a Ray that the run starts; 0: Ray's default."
    )
    memory_limit_gb: float = Field(
        0.0,
        ge=0,
        description="Memory limit of a stage's process, in GiB; 0: 60 % of what the node allows.",
    )
    heartbeat_s: float = Field(
        30.0, gt=0, description="Seconds without progress until a warning names the waiting stages."
    )
    stall_timeout_s: float = Field(
        900.0, gt=0, description="Seconds without progress until the run ends with an error."
    )


class CategoryConfig(Section):
    """Rules for one category: further queries, and images to exclude."""

    queries: tuple[str, ...] = Field(
        (), description="Further texts to search for; the query vector is the mean of all texts."
    )
    examples: tuple[Source, ...] = Field(
        (), description="Image files, also on s3://; each counts as a further text."
    )
    negatives: tuple[str, ...] = Field(
        (), description="Texts; an image that is closer to a negative than to the query is dropped."
    )
    vetoed: tuple[str, ...] = Field(
        (), description="Sample ids of excluded images; the next best candidates replace them."
    )
    blocked_urls: tuple[str, ...] = Field((), description="Urls of excluded images.")
    blocked_hosts: tuple[str, ...] = Field(
        (), description="Hosts whose images are excluded, including all subdomains."
    )
    blocked_hashes: tuple[Hash, ...] = Field(
        (),
        description="Perceptual hashes of excluded images, 16 hex digits each (images.hash_of); up "
        "to retrieve.hash_distance bits may differ.",
    )


class CategoriesConfig(Section):
    """The categories to segment: a category set by name or path, or a list of label names."""

    set: Source = Field("", description="Name of a shipped category set, or path of a TOML file.")
    names: tuple[str, ...] = Field((), description="Label names, if no category set is named.")
    templates: tuple[str, ...] = Field(
        (), description="Prompt templates with one {} for the name; empty: the method's 85."
    )
    each: dict[str, CategoryConfig] = Field(
        {}, description="Rules for single categories, by label name; see CategoryConfig."
    )


class EmbedConfig(ModelSection):
    """The model that maps images and category names into one vector space."""

    model: str = Field(
        "miniworld",
        description="`miniworld`, a model of open_clip such as `open_clip:ViT-L-14`, or a dotted "
        "path `pkg.mod:name`.",
    )
    weights: Source = Field(
        "",
        description="open_clip tag, file, or name of `namedmask weights`; empty: miniworld's own.",
    )
    batch_size: Count = Field(
        64, description="Images per forward pass; smaller batches are padded, for equal results."
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="`float32`, `bf16`, or `auto`: bf16 on cuda, float32 on cpu. A CPU that "
        "multiplies in bf16 (AVX-512 BF16, AMX) is faster with `bf16`.",
    )

    @property
    def summary(self) -> str:
        """Return model and device, for the plan."""
        return f"{self.model} on {self.device}"


class RetrieveConfig(PoolSection):
    """The search for each category's candidates, and the choice of its images among them."""

    archive_size: Count = Field(500, description="Images wanted per category. Method: 500")
    overfetch: float = Field(
        1.5,
        ge=1.0,
        description="Candidates tried per round, as a multiple of the number expected to suffice.",
    )
    candidates: Count = Field(
        3000, description="Best-ranked images kept per category. Method: the search page's 3,000"
    )
    backend: Literal["exact", "faiss"] = Field(
        "exact",
        description="`exact` scans all vectors; `faiss` queries the file in retrieve.index.",
    )
    index: Source = Field("", description="FAISS index file of all stored vectors, in order.")
    nprobe: int = Field(
        0, ge=0, description="Number of IVF lists to search per query; 0: as in the index file."
    )
    top_up_rounds: int = Field(2, ge=0, description="Further rounds of fetching to fill archives.")
    near_duplicate_cosine: Cosine = Field(
        0.94,
        description="Lowest cosine at which a candidate is a near duplicate of a better-ranked "
        "candidate; 1: off.",
    )
    near_duplicates: Literal["greedy", "components"] = Field(
        "greedy",
        description="`greedy` drops near duplicates of accepted candidates; `components` keeps the "
        "best candidate of each chain of near duplicates. Method: components",
    )
    replenish_faces: bool = Field(
        True, description="Replace each image with a face by the next candidate. Method: no"
    )
    violence_text: str = Field("", description="Description of violence in words; empty: off.")
    violence_cosine: Cosine = Field(
        0.25, description="Lowest cosine to retrieve.violence_text at which a candidate is dropped."
    )
    violence_prompts: Source = Field(
        "", description=".npy file with LAION's two violence prompts; empty: off."
    )
    safety_head: Source = Field(
        "",
        description=".npz or .pth file, or name of `namedmask weights`, of LAION's safety network; "
        "empty: off.",
    )
    safety_score: float = Field(
        0.5, description="Highest accepted safety score of a candidate. Method: safe mode, 0.5"
    )
    hash_distance: int = Field(
        0,
        ge=0,
        le=64,
        description="Most bits, of 64, in which the perceptual hashes (images.hash_of) of near "
        "duplicates differ; 0: off; 6 suits photos.",
    )

    @property
    def summary(self) -> str:
        """Return archive size, index and treatment of near duplicates, for the plan."""
        index = f" by index {self.index}" if self.backend == "faiss" else ""
        cosine = self.near_duplicate_cosine
        duplicates = f"from cosine {cosine} on dropped" if cosine < 1 else "kept"
        return f"{self.archive_size} per category{index}, near duplicates {duplicates}"


class SearchConfig(Section):
    """The index that the verb `search` builds and queries."""

    kind: Literal["auto", "flat", "hnsw", "ivfsq", "ivfpq"] = Field(
        "auto",
        description="`flat`, `hnsw`, `ivfsq`, `ivfpq`, or `auto`: flat up to 100,000 vectors, "
        "ivfsq up to 4 million, ivfpq above.",
    )
    recall: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Mean share of the 50 nearest vectors that a search must find.",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="`cpu`, or `cuda` with the extra `gpu`; a missing GPU is an error."
    )


class Sections(Section):
    """All sections of a run file; a new section is a class above and a field here."""

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
