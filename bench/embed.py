"""CLIP from the bytes of images to unit vectors, against its bare forward and against open_clip.

    NAMEDMASK_REAL_DATA=... python bench/embed.py [--model ViT-L-14] [--device cuda]
        [--precision float32] [--batches]

The stage `embed` (bytes in a table → vectors in a table) with random weights on real COCO photos;
the model's forward alone on tensors that are ready; and open_clip's own way, its preprocessing of
one image at a time through a torch DataLoader, without workers (its default) and with one a thread.
The ways take turns, in both orders. `--batches` measures the bare forward at other batch sizes
instead.

The last line is JSON. `bare_fraction` is the bare forward's time over the stage's; `ratio` that of
open_clip with the default DataLoader over the stage's, `ratio_workers` that with workers: of each
the median over the turns, for a machine is slower in one minute than in the next. On a GPU
`peak_share` is the forward's arithmetic over what a large product of bf16 matrices reaches there.
All have the same model and precision, bf16 where the device multiplies in it. Ends with an error
when a vector has a cosine below 0.999 to open_clip's in float32.
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
PEAK_SIDE = 8192


class Preprocessed(Dataset):
    """What open_clip's documentation does for each image."""

    def __init__(self, bodies: list[bytes], prepare: Callable[[Image.Image], torch.Tensor]) -> None:
        self._bodies, self._prepare = bodies, prepare

    def __len__(self) -> int:
        return len(self._bodies)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._prepare(Image.open(io.BytesIO(self._bodies[index])))


class Bench:
    """The three ways of one model."""

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
        return np.stack(self.stage(self.table)["embedding"].to_numpy())

    def theirs(self, workers: int) -> np.ndarray:
        loader = DataLoader(
            Preprocessed(self.bodies, self.prepare), self.batch, num_workers=workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        return np.concatenate([self.forward(pixels.to(self.device)) for pixels in loader])

    def expected(self) -> np.ndarray:
        """Return what open_clip itself makes of the images, in float32."""
        mixed, self.embedder._bf16 = self.embedder._bf16, False
        vectors = self.theirs(0)
        self.embedder._bf16 = mixed
        return vectors

    def forward(self, pixels: torch.Tensor) -> np.ndarray:
        with self.embedder._inference():
            vectors = self.model.encode_image(pixels, normalize=True)
        return vectors.float().cpu().numpy()

    def bare(self, batch: int) -> Callable[[], None]:
        side = self.model.visual.image_size
        ready = torch.randn(batch, 3, *(side if isinstance(side, tuple) else (side, side)))
        ready = ready.to(self.device)

        def run() -> None:
            for _ in range(len(self.bodies) // batch):
                self.forward(ready)

        return run

    def peak_share(self, images_a_second: float) -> float | None:
        """Return the forward's share of the arithmetic that bf16 products reach, on a GPU."""
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
        return flop * images_a_second / peak


def timed(ways: Sequence[Callable[[], object]], turns: int) -> np.ndarray:
    """Return seconds, (turns, ways), orders alternating; all have run once before."""
    for way in ways:
        way()
    seconds = np.zeros((turns, len(ways)))
    for turn in range(turns):
        order = range(len(ways)) if turn % 2 else reversed(range(len(ways)))
        for number in order:
            began = time.perf_counter()
            ways[number]()
            seconds[turn, number] = time.perf_counter() - began
    return seconds


def fastest_precision(device: str) -> str:
    """Return bf16 where the device multiplies in it, as GPUs and the CPUs of late do."""
    can = torch.cpu.get_capabilities()
    native = device == "cuda" or can.get("avx512_bf16") or can.get("amx_bf16")
    return "bf16" if native else "float32"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bf16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--batches", action="store_true", help="try batch sizes instead")
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
        sys.exit(f"bench/embed.py: a cosine to open_clip's vector is {cosines.min():.5f}.")
    ways = [
        bench.bare(arguments.batch),
        bench.ours,
        lambda: bench.theirs(0),
        lambda: bench.theirs(arguments.threads),
    ]
    seconds = timed(ways, arguments.turns)
    bare, ours, theirs, with_workers = np.median(seconds, axis=0)
    share = bench.peak_share(len(bodies) / bare)
    each = [round(1e3 * one / len(bodies), 2) for one in (bare, ours, theirs, with_workers)]
    of_bare, _, of_theirs, of_workers = np.median(seconds / seconds[:, 1:2], axis=0).round(3)
    print("ms an image: bare {}, ours {}, DataLoader {}, with workers {}".format(*each))
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
