"""The commands for weights files: list, fetch and verify them, and export a face detector."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from namedmask.cli.screen import show, show_weights, write, write_json
from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.storage import Place


def weights(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN.toml | fetch NAME... | verify]", help="default: list all weights"
        ),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-license",
            metavar="LICENSE",
            help="accept this license, which is not free; repeatable",
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="copy files from this folder")
    ] = None,
    mirror: Annotated[str, typer.Option(metavar="URL", help="fetch files below this url")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="override a key of RUN.toml; repeatable"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write the result as JSON")] = False,
) -> None:
    """List the weights that a run needs, fetch weights into the cache, or verify the cache."""
    from namedmask.weights import catalog as files
    from namedmask.weights import download

    action, *names = words or [""]
    if action == "fetch":
        if not names:
            raise InputError(
                "'namedmask weights fetch' needs names of weights; 'namedmask weights' lists them."
            )
        done = download.fetch_weights(
            names, accepted=accept or (), folder=source, mirror=mirror, say=_say
        )
        write_json(done) if as_json else show_weights(done, ("name", "bytes", "checked", "path"))
        return
    if names:
        raise InputError(
            f"'namedmask weights {action}' takes no further arguments; got {' '.join(names)}."
        )
    if action == "verify":
        rows = download.verify_weights()
        write_json(rows) if as_json else show_weights(rows, ("name", "state", "path"))
        if any(row["state"] != "ok" for row in rows):
            raise typer.Exit(1)
        return
    config = Config.load(Path(action), overrides or ()) if action else None
    rows = files.listed(config)
    if as_json:
        write_json(rows)
        return
    for row in rows:
        row["size"] = f"{row['bytes']:,} bytes" if row.get("bytes") else "size unknown"
        row["hash"] = f"sha256 {row['sha256']}" if row.get("sha256") else "no published hash"
    first = ("setting" if action else "key", "name", "state")
    show_weights(rows, (*first, "size", "license", "file", "url", "hash", "note"))
    write(f"cache: {files.cache_folder()}; fetch with: namedmask weights fetch NAME")


def checkpoint_of(text: str) -> Place:
    """Return the file named by a path, an s3:// url, or a name of `namedmask weights`.

    Raises:
        CheckpointError: the file of a known name is not in the cache, or has changed in size.
    """
    from namedmask.weights.catalog import place_named

    return place_named(text)


def export_faces(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="RetinaFace with ResNet50: file, or name of `namedmask weights`",
            parser=checkpoint_of,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="file to write")],
    side: Annotated[int, typer.Option(min=32, help="side of the square input in pixels")] = 640,
    as_json: Annotated[bool, typer.Option("--json", help="write the result as JSON")] = False,
) -> None:
    """Export a RetinaFace checkpoint as ONNX for the face filter, and compare both outputs."""
    from namedmask.faces.retinaface import export_onnx

    result = export_onnx(checkpoint, out, side)
    write_json(result) if as_json else show(result)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
