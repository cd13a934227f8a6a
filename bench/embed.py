"""Time CLIP from image bytes to unit vectors, against its bare forward and against open_clip.

    NAMEDMASK_REAL_DATA=... python bench/embed.py [--model ViT-L-14] [--device cuda]
        [--precision float32] [--batches]

Four ways are timed on real COCO photos, with random weights: the stage `embed`, from a table of
bytes to a table of vectors; the model's forward alone, on tensors in memory; and open_clip's way,
which preprocesses one image at a time in a torch DataLoader, without workers (the default) and with
one worker per thread. The ways take turns, in alternating order. `--batches` measures the bare
forward at several batch sizes instead.

The last line is JSON. `bare_fraction` is the time of the bare forward over that of the stage.
`ratio` is the time of open_clip with the default DataLoader over that of the stage, and
`ratio_workers` the same with workers. All three are medians over the turns, because the speed of a
machine changes from minute to minute. On a GPU, `peak_share` is the arithmetic rate of the forward
over that of a large product of bf16 matrices. All ways have the same model and precision, which is
bf16 if the device multiplies in bf16 natively. The bench fails if the cosine of a vector with
open_clip's float32 vector is below 0.999.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from namedmask.config import EmbedConfig
from namedmask.embed.open_clip import OpenClip
from namedmask.embed.stage import Embed

LEAST_COSINE = 0.999
"""Lowest cosine with open_clip's float32 vectors that is accepted."""

PEAK_SIDE = 8192
"""Side of the matrices whose product measures the peak rate of a GPU."""


class Preprocessed(Dataset[torch.Tensor]):
    """A data set that preprocesses images as in open_clip's documentation."""

    def __init__(self, bodies: list[bytes], prepare: Callable[[Image.Image], torch.Tensor]) -> None:
        self._bodies, self._prepare = bodies, prepare

    def __len__(self) -> int:
        return len(self._bodies)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._prepare(Image.open(io.BytesIO(self._bodies[index])))


class Bench:
    """The ways to embed the same images with one model."""

    def __init__(self, arguments: argparse.Namespace, bodies: list[bytes]) -> None:
        self.batch, self.device = arguments.batch, torch.device(arguments.device)
        torch.manual_seed(0)
        self.model, _, self.prepare = open_clip.create_model_and_transforms(arguments.model)
        tokenizer = open_clip.get_tokenizer(arguments.model)
        config = EmbedConfig(batch_size=self.batch, device=arguments.device)
        self.stage = Embed(config)
        self.stage.embedder = self.embedder = OpenClip(
            self.model, tokenizer, self.device, arguments.precision
        )
        self.bodies = bodies
        self.table = pa.table({"image": bodies, "status": ["ok"] * len(bodies)})

    def ours(self) -> np.ndarray:
        """Return the vectors of the stage `embed`, (N, D) float32."""
        return np.stack(self.stage(self.table)["embedding"].to_numpy())

    def theirs(self, workers: int) -> np.ndarray:
        """Return open_clip's vectors from a DataLoader with this many workers, (N, D) float32."""
        loader = DataLoader(
            Preprocessed(self.bodies, self.prepare), self.batch, num_workers=workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        return np.concatenate([self.forward(pixels.to(self.device)) for pixels in loader])

    def expected(self) -> np.ndarray:
        """Return open_clip's vectors in float32, (N, D)."""
        mixed, self.embedder._bf16 = self.embedder._bf16, False
        vectors = self.theirs(0)
        self.embedder._bf16 = mixed
        return vectors

    def forward(self, pixels: torch.Tensor) -> np.ndarray:
        """Return the unit vectors, (B, D) float32, of preprocessed images (B, 3, H, W)."""
        with self.embedder._inference():
            vectors = self.model.encode_image(pixels, normalize=True)
        result: np.ndarray = vectors.float().cpu().numpy()
        return result

    def bare(self, batch: int) -> Callable[[], None]:
        """Return a function that runs the model over as many images, on tensors in memory."""
        side = self.model.visual.image_size
        ready = torch.randn(batch, 3, *(side if isinstance(side, tuple) else (side, side)))
        ready = ready.to(self.device)

        def run() -> None:
            for _ in range(len(self.bodies) // batch):
                self.forward(ready)

        return run

    def peak_share(self, images_per_second: float) -> float | None:
        """Return the forward's arithmetic rate over that of bf16 products; None without a GPU."""
        if self.device.type != "cuda":
            return None
        with FlopCounterMode(display=False) as counter:
            self.bare(len(self.bodies))()
        flop = counter.get_total_flops() / len(self.bodies)
        matrix = torch.randn(PEAK_SIDE, PEAK_SIDE, device=self.device, dtype=torch.bfloat16)

        def products() -> None:
            for _ in range(10):
                torch.mm(matrix, matrix)
            torch.cuda.synchronize()

        peak = 10 * 2 * PEAK_SIDE**3 / timed([products], 3).min()
        result: float | None = flop * images_per_second / peak
        return result


def timed(ways: Sequence[Callable[[], object]], turns: int) -> np.ndarray:
    """Return the seconds of each way in each turn, (turns, ways) float64.

    Every way runs once before the first turn, and the order alternates.
    """
    for way in ways:
        way()
    seconds = np.zeros((turns, len(ways)))
    for turn in range(turns):
        order = range(len(ways)) if turn % 2 else reversed(range(len(ways)))
        for number in order:
            start = time.perf_counter()
            ways[number]()
            seconds[turn, number] = time.perf_counter() - start
    return seconds


def fastest_precision(device: str) -> str:
    """Return bf16 if the device multiplies in it natively, as GPUs and recent CPUs do."""
    can = torch.cpu.get_capabilities()
    native = device == "cuda" or can.get("avx512_bf16") or can.get("amx_bf16")
    return "bf16" if native else "float32"


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bf16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument(
        "--batches", action="store_true", help="time the bare forward at several batch sizes"
    )
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or fastest_precision(arguments.device)
    folder = os.environ.get("NAMEDMASK_REAL_DATA")
    if not folder:
        sys.exit("bench/embed.py: set NAMEDMASK_REAL_DATA to the folder of real photos.")
    torch.set_num_threads(arguments.threads)
    photos = sorted((Path(folder) / "coco" / "photos").glob("*.jpg"))
    bodies = [path.read_bytes() for path in photos]
    bodies = [bodies[number % len(bodies)] for number in range(arguments.images)]
    bench = Bench(arguments, bodies)
    if arguments.batches:
        sizes = [size for size in (1, 4, 16, 32, 64, 128, 256) if size <= len(bodies)]
        taken = timed([bench.bare(size) for size in sizes], arguments.turns).min(axis=0)
        rates = {
            size: round(len(bodies) // size * size / seconds, 2)
            for size, seconds in zip(sizes, taken, strict=True)
        }
        print(json.dumps({"bench": "embed", "images_a_second": rates}))
        return

    cosines = (bench.ours() * bench.expected()).sum(axis=1)
    if cosines.min() < LEAST_COSINE:
        sys.exit(
            f"bench/embed.py: the lowest cosine with open_clip's vectors is {cosines.min():.5f}, "
            f"expected at least {LEAST_COSINE}."
        )
    ways = [
        bench.bare(arguments.batch),
        bench.ours,
        lambda: bench.theirs(0),
        lambda: bench.theirs(arguments.threads),
    ]
    seconds = timed(ways, arguments.turns)
    bare, ours, theirs, with_workers = np.median(seconds, axis=0)
    share = bench.peak_share(len(bodies) / bare)
    each = [round(1e3 * way / len(bodies), 2) for way in (bare, ours, theirs, with_workers)]
    of_bare, _, of_theirs, of_workers = np.median(seconds / seconds[:, 1:2], axis=0).round(3)
    print("ms per image: bare {}, ours {}, DataLoader {}, with workers {}".format(*each))
    result = {
        "bench": "embed",
        "model": arguments.model,
        "device": arguments.device,
        "precision": arguments.precision,
        "images": len(bodies),
        "least_cosine": round(float(cosines.min()), 6),
        "images_a_second": round(len(bodies) / ours, 1),
        "bare_fraction": of_bare,
        "ratio": of_theirs,
        "ratio_workers": of_workers,
        "peak_share": share and round(share, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
