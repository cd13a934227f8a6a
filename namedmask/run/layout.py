"""The names of all files and folders in a run folder; no other module contains such a name.

A run folder holds *stores* (folders whose valid files are listed in commit records, see ledger.py),
single files that a verb writes as a whole, and folders that are rebuilt when their input changes.
"""

from __future__ import annotations

from pathlib import Path

RUN_RECORD = "run.json"
"""File that records which verbs are finished, with their settings and results."""

LOCK = ".lock"
"""Lock file of the run folder, which allows one writing process at a time."""

SAVED_CONFIG = "run.toml"
"""Run file with every key of the config of the last verb that worked in the run folder."""

TIMINGS = "timings.json"
"""File with the seconds per stage, summed over all verbs."""

FUNNELS = "funnels.json"
"""File with the numbers of rows and of candidates by status."""

CANDIDATES = "candidates.parquet"
"""File with the final status of every candidate (schema.CANDIDATES)."""

LABEL_IDS = "labels.json"
"""File with all label ids that were ever assigned in the run folder."""

MODEL_CHECK = "proof.json"
"""File with the outcome of the check that the embedder made the published vectors."""

CLUSTERS = "clusters.json"
"""File that lists the categories of each expert, if experts are shared by clusters."""

ARCHIVE = "archive"
"""Folder of the archives: one parquet file per category, and their manifest."""

MANIFEST = "manifest.json"
"""File that is written last and thus marks an archive or a search index as complete."""

CHECKPOINT = Path("segmenter") / "checkpoint.pt"
"""File with the trained segmenter."""

TRAINING = Path("segmenter") / "training.pt"
"""File with the state of an unfinished training."""

RAY_TRAIN = Path("segmenter") / "ray"
"""Scratch folder of Ray Train, removed at the end of a training."""

EVALUATION = "evaluation.json"
"""File with the segmenter's scores."""

LABEL_MAPS = "evaluation"
"""Folder of the predicted label maps of the best and the worst benchmark scenes."""

BASELINES = "baselines"
"""Folder of the scores and threshold sweeps of MaskCLIP and ReCo."""

ABLATIONS = "ablations"
"""Folder of the ablation studies, with one run folder per trial."""

SEARCH_INDEX = "index"
"""Folder of the index of `namedmask search`."""

SEARCH_ROWS = "rows.arrow"
"""File in the search index with all rows and their vectors."""

FAISS_INDEX = "index.faiss"
"""File in the search index with the FAISS index over the vectors."""

CLEAN_METADATA = "metadata"
"""Folder of clean metadata rows; it exists only while a verb on Ray reads them."""

LOGS = "logs"
"""Folder of the tracebacks of unexpected errors."""

REPORT = "report.html"
"""Web page that `namedmask report` writes."""

DEMO_SUMMARY = "summary.json"
"""File with the scores and timings of the demo."""

DEMO_WORLD = "world"
"""Folder of the mini world that the demo draws."""

DEMO_PICTURE = "demo.png"
"""Image of some scenes of the demo: input, ground truth, prediction."""

FETCHED = "fetched"
"""Store of the images that the verb `fetch` wrote (schema.FETCHED); no other verb reads it."""

EMBEDDINGS = "embeddings"
"""Store of image vectors (schema.EMBEDDINGS)."""

CANDIDATE_LISTS = "offers"
"""Store of candidate lists, one unit per category query (schema.CANDIDATE_LIST)."""

IMAGES = "images"
"""Store of checked images (schema.IMAGES)."""

REFINED = "refined"
"""Store of the masks that the experts redrew (schema.REFINED); the archive keeps its masks."""

EXPERTS = "experts"
"""Store of the experts' checkpoints."""

SHARED_EXPERT = "shared"
"""Unit name of the shared expert, from which all other experts start."""

_WAVE = r"((wave|tombstones)-\d{5,}(\.[0-9a-f]{8})?\.parquet|part-\d{5,}-\d{5,}\.arrow)"
_CATEGORY = r"\d{5}-[a-z0-9-]+"
STORE_FILES = {
    FETCHED: _WAVE,
    EMBEDDINGS: _WAVE,
    CANDIDATE_LISTS: r"[0-9a-f]{20}\.parquet",
    IMAGES: _WAVE,
    REFINED: rf"{_CATEGORY}\.parquet",
    EXPERTS: rf"({SHARED_EXPERT}|{_CATEGORY}|cluster-\d{{5}}-[0-9a-f]{{12}})\.pt",
}
"""Regular expression of the file names in each store; `Ledger.sweep` removes no other files."""


def commit_file(unit: str) -> str:
    """Return the file name of a unit's commit record in its store."""
    return f"commit-{unit}.json"


def commit_files() -> str:
    """Return the glob pattern of the commit records in a store."""
    return commit_file("*")


def wave_file(store_name: str, kind: str, unit: str) -> str:
    """Return the path of a wave's file in the run folder; `kind` is `wave` or `tombstones`."""
    return f"{store_name}/{kind}-{unit}.parquet"


def part_file(store_name: str, unit: str, number: int) -> str:
    """Return the path of a slice of an uncommitted wave in the run folder, an Arrow stream."""
    return f"{store_name}/part-{unit}-{number:05d}.arrow"


def wave_files() -> str:
    """Return the glob pattern of the files with good rows in a store."""
    return "wave-*.parquet"


def candidate_list_file(unit: str) -> str:
    """Return the path, in the run folder, of the candidate list of a category."""
    return f"{CANDIDATE_LISTS}/{unit}.parquet"


def expert_file(unit: str) -> str:
    """Return the path, in the run folder, of the checkpoint of an expert."""
    return f"{EXPERTS}/{unit}.pt"


def error_log(number: int) -> str:
    """Return the path, in the run folder, of the file with the traceback of an error."""
    return f"{LOGS}/error-{number}.txt"


def scores_file(split: str) -> str:
    """Return the name of the file with an ablation trial's scores on a split, in its run folder."""
    return f"scores-{split}.json"
