"""Serve the mini world's web from a process on loopback, with the faults that its routes name.

Usage:

    with serve(WORLD / "web", reserve_port(WORLD / "port")) as base:
        ...  # base is http://127.0.0.1:PORT
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from aiohttp import web

from namedmask.errors import InputError

PORT = 8917
"""Port of a new world, if it is free."""


def reserve_port(note: Path) -> int:
    """Return the port of a world, which never changes, as the urls and sample ids depend on it.

    A new world gets port 8917 or, if that is taken, any free port. The file `note` holds the port.
    """
    if note.exists():
        return int(note.read_text())
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    note.write_text(str(port))
    return port


@contextmanager
def serve(folder: Path, port: int) -> Iterator[str]:
    """Yield the base url of a server over `folder`, which runs in a process of its own.

    The process is stopped when the block ends, and ends by itself if this process is killed.

    Raises:
        InputError: another program uses the port.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(folder, port, theirs), daemon=True)
    process.start()
    try:
        if not ours.recv():
            raise InputError(
                f"port {port} of this machine is in use, but the urls of the mini world contain "
                f"it. Stop the other program, or remove {folder.parent} to draw a new world."
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def _run(folder: Path, port: int, pipe: Connection) -> None:
    asyncio.run(_serve(folder, port, pipe))


async def _serve(folder: Path, port: int, pipe: Connection) -> None:
    routes = json.loads((folder / "routes.json").read_text())
    app = web.Application()
    app.router.add_get("/metadata.parquet", _Metadata(folder))
    app.router.add_get("/moved/{path:.*}", _Pictures(folder, {}))
    app.router.add_get("/{path:.*}", _Pictures(folder, routes))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError:
        pipe.send(False)
        return
    pipe.send(True)
    parent_ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), parent_ended.set)
    await parent_ended.wait()


class _Metadata:
    """Request handler for the metadata table, whose urls point at this server."""

    def __init__(self, folder: Path) -> None:
        self.table = pq.read_table(folder / "metadata.parquet")

    async def __call__(self, request: web.Request) -> web.Response:
        base = f"http://{request.host}"
        urls = pc.replace_substring(self.table["URL"], "{base}", base)
        sink = pa.BufferOutputStream()
        pq.write_table(self.table.set_column(0, "URL", urls), sink)
        return web.Response(body=sink.getvalue().to_pybytes())


class _Pictures:
    """Request handler for pictures; it causes the trouble that the route of a picture names."""

    def __init__(self, folder: Path, routes: dict[str, str]) -> None:
        self.folder, self.routes = folder, routes

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        trouble = self.routes.get(path, "")
        if trouble.startswith("http_"):
            return web.Response(status=int(trouble[5:]), text="gone")
        if trouble == "timeout":
            await asyncio.sleep(3600)
        if trouble == "reset" and request.transport is not None:
            request.transport.abort()
        if trouble == "redirect":
            raise web.HTTPFound(f"/moved/{path}")
        if trouble == "not_an_image":
            page = "<!doctype html><title>Parked</title><p>This domain is for sale."
            return web.Response(text=page, content_type="text/html")
        target = self.folder / path
        if not target.is_file() or self.folder.resolve() not in target.resolve().parents:
            return web.Response(status=404, text="no such picture")
        data = target.read_bytes()
        headers = {"X-Robots-Tag": "noai, noimageai"} if trouble == "opted_out" else {}
        if trouble == "truncated":
            data = data[: len(data) // 2]
        return web.Response(body=data, content_type="image/jpeg", headers=headers)
