"""The command `inspect`, which describes a run, archive, vectors, checkpoint, table or run file."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from namedmask.config import Config, MetadataConfig
from namedmask.errors import InputError, SchemaError
from namedmask.retrieve.published import PublishedStore, is_published
from namedmask.run import layout
from namedmask.schema.columns import counts_by_status
from namedmask.storage import Place
from namedmask.storage.files import content_of
from namedmask.storage.place import readable, sizes_below


def inspect_path(path: Place) -> dict[str, Any]:
    """Return the `kind` of a file or folder and a description of its content, as plain values.

    Raises:
        InputError: the path does not exist, NamedMask does not know its kind, or files of published
            vectors disagree.
        ConfigError: a run file is invalid.
        CheckpointError: a checkpoint cannot be read.
        SchemaError: another file or folder cannot be read as its kind.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if (path / layout.RUN_RECORD).is_file() or (path / layout.SAVED_CONFIG).is_file():
        with content_of(path):
            return _run(path)
    if (path / layout.MANIFEST).is_file():
        return _archive(path)
    if is_published(path):
        return _vectors(path)
    readers = {".parquet": _table, ".toml": _run_file}
    readers |= dict.fromkeys((".pt", ".pth", ".safetensors"), _checkpoint)
    if path.is_file() and path.suffix in readers:
        return readers[path.suffix](path)
    raise InputError(
        f"NamedMask does not know what {path} is; expected a run folder (with run.json), an "
        "archive folder (with manifest.json), published vectors (with img_emb and metadata), or a "
        ".parquet, .pt, .pth, .safetensors or .toml file."
    )


def _run(path: Place) -> dict[str, Any]:
    content: dict[str, Any] = {"kind": "run folder", "path": str(path)}
    if (path / layout.RUN_RECORD).is_file():
        content["finished"] = _json(path / layout.RUN_RECORD)
    if (path / layout.FUNNELS).is_file():
        funnels = _json(path / layout.FUNNELS)
        content["funnels"] = {key: funnels[key] for key in funnels if key != "by_category"}
    if (path / layout.MODEL_CHECK).is_file():
        content["proof"] = _json(path / layout.MODEL_CHECK)
    if (path / layout.ARCHIVE / layout.MANIFEST).is_file():
        content["archive"] = _archive(path / layout.ARCHIVE)["categories"]
    if (path / layout.EVALUATION).is_file():
        evaluation = _json(path / layout.EVALUATION)
        content["evaluation"] = {
            k: v for k, v in evaluation.items() if isinstance(v, int | float | str)
        }
    sizes = sizes_below(path)
    content["files"] = len(sizes)
    content["bytes"] = sum(sizes)
    return content


def _archive(path: Place) -> dict[str, Any]:
    manifest = _json(path / layout.MANIFEST)
    try:
        categories = {
            entry["name"]: f"{entry['count']} of {entry['wanted']}"
            for entry in manifest["categories"]
        }
    except (KeyError, TypeError) as error:
        raise SchemaError(
            f"{path / layout.MANIFEST} lacks {error}. Run 'namedmask build' again."
        ) from None
    return {
        "kind": "archive",
        "path": str(path),
        "format_version": manifest.get("format_version"),
        "categories": categories,
    }


def _vectors(path: Place) -> dict[str, Any]:
    files = [file for file, _, _ in PublishedStore(path, MetadataConfig()).files()]
    return {
        "kind": "published vectors",
        "path": str(path),
        "files": len(files),
        "vectors": sum(file.rows for file in files),
        "width": files[0].width,
        "dtype": ", ".join(sorted({file.dtype for file in files})),
        "bytes_of_vectors": sum(file.rows * file.row_bytes for file in files),
    }


def _table(path: Place) -> dict[str, Any]:
    try:
        file = pq.ParquetFile(readable(path))
        content: dict[str, Any] = {
            "kind": "table",
            "path": str(path),
            "rows": file.metadata.num_rows,
            "row_groups": file.metadata.num_row_groups,
            "columns": {field.name: str(field.type) for field in file.schema_arrow},
        }
        if "status" in content["columns"]:
            statuses = file.read(columns=["status"])["status"].to_pylist()
            content["rows_by_status"] = counts_by_status(statuses)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read as parquet: {error}") from error
    return content


def _checkpoint(path: Place) -> dict[str, Any]:
    from namedmask.weights.tensors import read_tensors

    tensors, plain = _walk(read_tensors(path))
    return {
        "kind": "checkpoint",
        "path": str(path),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors),
        **plain,
    }


def _walk(tree: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return all tensors of a nested checkpoint, and the plain values of its top level."""
    import torch

    if isinstance(tree, torch.Tensor):
        return [tree], {}
    if not isinstance(tree, dict):
        return [], {}
    tensors: list[Any] = []
    for value in tree.values():
        tensors += _walk(value)[0]
    plain = {
        str(key): list(value) if isinstance(value, tuple) else value
        for key, value in tree.items()
        if isinstance(value, str | int | float)
        or (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))
    }
    return tensors, plain


def _run_file(path: Place) -> dict[str, Any]:
    return {"kind": "run file", "path": str(path), "config": Config.load(path).tree()}


def _json(path: Place) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path} cannot be read as JSON: {error}") from error
