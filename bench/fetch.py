"""Compare `namedmask fetch` with img2dataset 1.47.0 on the same urls, as whole processes.

    python bench/fetch.py [--urls 5000] [--ray-urls 50000] [--repeats 3] [--part local|keep|ray]...

A server process (nginx, one worker) has 500 drawn JPEGs of 32 kB on average, with a longer side of
250 to 640 pixels, each under many urls. One url in ten is dead. `local` shrinks larger images to a
longer side of 384 pixels at quality 95, with the plain loop. `keep` stores the bytes as they came:
we decode each image to check it, and img2dataset does not (`--disable_all_reencoding`). `ray` is
`local` on a Ray that the run starts. The order of the sides alternates.

Both sides have two cores, two processes, 128 concurrent requests and equal shards, and store small
images unchanged (`--skip_reencode`). img2dataset runs as in its README, with webdataset tars, EXIF
and hashes, but no update check. Its fastest setting is `lean`: parquet, no EXIF, no hashes.

The last line is JSON. `ratio`, `ratio_keep` and `ratio_ray` are median times of whole processes,
img2dataset's over ours; the suffix `_lean` stands for the lean setting. `steady` is the images per
second from the server's first answer to the last commit, and `fixed_s` the other seconds of the
process. `cpu_s` is the processor time of a side, on Ray of the driver only. `server_share` is the
share of one core that nginx used. The floors, in images per second, are a bare aiohttp loop
(`floor_download`) and the processing of the bytes alone on two threads (`floor_decode`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from namedmask.images.jpegs import to_store
from namedmask.run.ledger import read_commits

PEER = ("img2dataset==1.47.0", "setuptools<81")  # albumentations needs pkg_resources
PEER_FOLDER = Path(os.environ.get("NAMEDMASK_IMG2DATASET", "build/img2dataset"))
NGINX = os.environ.get("NGINX", "/usr/sbin/nginx")

PICTURES = 500
SIDE, QUALITY, CORES, REQUESTS = 384, 95, 2, 128

CONF = """
daemon off; worker_processes 1; {user} pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  log_format times '$msec';
  access_log {folder}/access.log times buffer=64k flush=1s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  types {{ image/jpeg jpg; }}
  sendfile on; open_file_cache max=1000;
  server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/pictures; }}
}}
"""


def picture(number: int) -> np.ndarray:
    """Return a picture, (H, W, 3) uint8 BGR, with as much detail at each scale as photos."""
    rng = np.random.default_rng(number)
    longer = int(rng.integers(250, 641))
    shorter = int(longer * rng.uniform(0.6, 1.0))
    height, width = (shorter, longer) if rng.random() < 0.7 else (longer, shorter)
    field = np.full((height, width, 3), 128, np.float32)
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        grid = rng.standard_normal((height // step + 2, width // step + 2, 3)).astype(np.float32)
        grid = 1.4 * grid.mean(axis=2, keepdims=True) + 0.4 * grid
        field += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 2.1 * step**0.6
    return np.clip(field, 0, 255).astype(np.uint8)


class Server:
    """An nginx process that serves the pictures in a folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.origin = f"http://127.0.0.1:{port}"
        self._log = folder / "access.log"
        user = "user root;" if os.geteuid() == 0 else ""  # nginx's default user may not read it
        (folder / "nginx.conf").write_text(CONF.format(folder=folder, port=port, user=user))
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        self.process = subprocess.Popen(command)
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)

    def log_size(self) -> int:
        time.sleep(1.5)  # nginx writes the log once per second
        return self._log.stat().st_size

    def first_answer(self, since: int) -> float:
        """Return the time of the first request after the log was `since` bytes long."""
        self.log_size()
        with self._log.open() as file:
            file.seek(since)
            return float(file.readline())

    def cpu_seconds(self) -> float:
        """Return the processor time that nginx's worker has used."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        worker = children.read_text().split()[0]
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_urls(path: Path, origin: str, count: int) -> list[str]:
    """Write the table that both sides read and return its urls."""
    urls = [
        f"{origin}/{'dead' if number % 10 == 9 else number * 7 % PICTURES}.jpg?{number}"
        for number in range(count)
    ]
    captions = [f"picture {number}" for number in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    return urls


@dataclass(frozen=True)
class Task:
    """The settings of one run of a side."""

    urls: Path
    shard_rows: int
    shrink: bool = True
    ray: bool = False
    lean: bool = False


Done = tuple[int, float]
"""Number of images stored, and the time when the last shard was finished."""

Side = Callable[[Task, Path], Done]


def ours(task: Task, out: Path) -> Done:
    """Run `namedmask fetch` and return what it stored, and when it ended."""
    command = [
        sys.executable, "-m", "namedmask", "fetch", str(write_run_file(task, out)), "--json",
        *([] if task.ray else ["--local"]),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    last = max(path.stat().st_mtime for path in (out / "fetched").glob("commit-*.json"))
    counts = [commit.counts for commit in read_commits(out, "fetched").values()]
    stored = sum(by_status.get("ok", 0) for by_status in counts)
    assert json.loads(done.stdout)["rows_by_status"]["ok"] == stored
    return stored, last


def write_run_file(task: Task, out: Path) -> Path:
    path = out.with_suffix(".toml")
    path.write_text(f"""
[run]
out = "{out}"
wave_rows = {task.shard_rows}
[ray]
num_cpus = {CORES + 1}
[metadata]
source = ["{task.urls}"]
[fetch]
longest_side = {SIDE if task.shrink else 0}
in_flight = {REQUESTS // CORES}
processes = {CORES}
per_host = {REQUESTS}
actors = [{CORES}, {CORES}]
allow_loopback = true
""")
    return path


def theirs(task: Task, out: Path, program: Path) -> Done:
    """Run img2dataset and return what it stored, and when it ended."""
    keep = ["--resize_mode", "no", "--disable_all_reencoding", "True"]
    lean = ["--output_format", "parquet", "--extract_exif", "False", "--compute_hash", "None"]
    shrink = ["--image_size", str(SIDE), "--resize_mode", "keep_ratio_largest",
              "--resize_only_if_bigger", "True", "--encode_quality", str(QUALITY)]  # fmt: skip
    command = [
        str(program), "--url_list", str(task.urls), "--input_format", "parquet", "--url_col", "url",
        "--caption_col", "caption", "--output_folder", str(out),
        "--processes_count", str(CORES), "--thread_count", str(REQUESTS // CORES),
        "--number_sample_per_shard", str(task.shard_rows), "--retries", "1", "--skip_reencode",
        "True", "--enable_wandb", "False", *(shrink if task.shrink else keep),
        *(lean if task.lean else ["--output_format", "webdataset"]),
    ]  # fmt: skip
    env = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run(
        command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    shards = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    return sum(s["successes"] for s in shards), max(s["end_time"] for s in shards)


def timed(side: Side, task: Task, out: Path, server: Server) -> dict[str, Any]:
    """Return the measurements of one run of a side."""
    log, cpu, start = server.log_size(), server.cpu_seconds(), time.time()
    cpu_before = cpu_of_children()
    stored, last = side(task, out)
    whole = time.time() - start
    first = server.first_answer(log)
    return {
        "ok": stored,
        "whole_s": whole,
        "steady": stored / (last - first),
        "fixed_s": whole - (last - first),
        "cpu_s": cpu_of_children() - cpu_before,
        "server_share": (server.cpu_seconds() - cpu) / whole,
    }


def cpu_of_children() -> float:
    """Return the processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def floors(urls: list[str], shrink: bool, pictures: Path) -> dict[str, float]:
    """Return the images per second of a bare download, and of processing the bytes alone."""
    bodies = [path.read_bytes() for path in sorted(pictures.iterdir())] * 2
    start = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(lambda body: to_store(body, SIDE if shrink else 0), bodies))
    decode = len(bodies) / (time.perf_counter() - start)
    start = time.perf_counter()
    return {
        "floor_decode": decode,
        "floor_download": asyncio.run(download(urls)) / (time.perf_counter() - start),
    }


async def download(urls: list[str]) -> int:
    """Fetch the urls and return how many of them answered with status 200."""
    remaining, found = iter(urls), 0

    async def follow(session: aiohttp.ClientSession) -> None:
        nonlocal found
        for url in remaining:
            async with session.get(url) as response:
                await response.read()
                found += response.status == 200

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(follow(session) for _ in range(REQUESTS)))
    return found


def peer(place: Path) -> Path:
    """Return img2dataset's program in the virtual environment `place`, made if it is missing."""
    if not (place / "bin" / "img2dataset").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", "--quiet", *PEER], check=True)
    return place / "bin" / "img2dataset"


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Draw the pictures and yield a server for them."""
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        path = folder / "pictures" / f"{number}.jpg"
        cv2.imwrite(str(path), picture(number), [cv2.IMWRITE_JPEG_QUALITY, 85])
    server = Server(folder)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def compare(
    part: str, tasks: dict[str, Task], repeats: int, server: Server, folder: Path, program: Path
) -> dict[str, dict[str, float]]:
    """Return the median measurements of each side; the order of the sides alternates."""
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for repeat in range(repeats):
        for name in sorted(tasks, reverse=bool(repeat % 2)):
            out = Path(tempfile.mkdtemp(dir=folder)) / name
            side: Side = ours if name == "ours" else partial(theirs, program=program)
            runs[name].append(timed(side, tasks[name], out, server))
            subprocess.run(["rm", "-r", str(out.parent)], check=True)
            print(part, name, {key: round(value, 2) for key, value in runs[name][-1].items()})
    counts = {run["ok"] for of_side in runs.values() for run in of_side}
    assert len(counts) == 1, f"{part}: the sides stored different numbers of images: {counts}"
    return {
        name: {key: statistics.median(run[key] for run in of_side) for key in of_side[0]}
        for name, of_side in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--urls", type=int, default=5000)
    parser.add_argument("--ray-urls", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", action="append", choices=["local", "keep", "ray"])
    parser.add_argument("--peer", type=Path, default=PEER_FOLDER, help="venv of img2dataset")
    options = parser.parse_args()
    parts = options.part or ["local", "keep", "ray"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    program = peer(options.peer.absolute())
    result: dict[str, Any] = {"bench": "fetch", "urls": options.urls, "repeats": options.repeats}
    with tempfile.TemporaryDirectory(prefix="bench-fetch-") as name, served(Path(name)) as server:
        folder = Path(name)
        few, many = folder / "few.parquet", folder / "many.parquet"
        urls = write_urls(few, server.origin, options.urls)
        for part in parts:
            task = Task(few, 500, shrink=part == "local")
            tasks = {"ours": task, "theirs": task, "theirs_lean": replace(task, lean=True)}
            if part == "ray":
                write_urls(many, server.origin, options.ray_urls)
                task = Task(many, 1000, ray=True)
                tasks = {"ours": task, "theirs": task}
            sides = compare(part, tasks, options.repeats, server, folder, program)
            result |= ratios(part, sides)
            result[part] = sides
            if part != "ray":
                result[part] |= floors(urls, part == "local", folder / "pictures")
    text = json.dumps(result)
    print(json.dumps(json.loads(text, parse_float=lambda number: round(float(number), 3))))


def ratios(part: str, sides: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the ratios of a part, under their keys in the last line."""
    found: dict[str, float] = {}
    own, part_suffix = sides["ours"], "" if part == "local" else f"_{part}"
    for side, suffix in (("theirs", part_suffix), ("theirs_lean", f"{part_suffix}_lean")):
        if other := sides.get(side):
            found[f"ratio{suffix}"] = other["whole_s"] / own["whole_s"]
            found[f"ratio_steady{suffix}"] = own["steady"] / other["steady"]
    return found


if __name__ == "__main__":
    main()
