"""Train the tiny CLIP on the collection's images and captions.

    python -m namedmask.miniworld.training.clip FOLDER [--steps 3000] [--start WEIGHTS]

The model is an open_clip model (config `clip.json`) with a ModifiedResNet, a text tower of two
layers, and a short BPE merge file of its own. The loss is CLIP's loss plus an image-to-image term
between two near-duplicate views, as in SLIP. This term separates the vectors of images that are not
copies of each other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

from namedmask.miniworld.training import views
from namedmask.miniworld.training.weights import WEIGHTS, save_half

log = logging.getLogger(__name__)
SIDE = 64
"""Side of an input image in pixels."""

CONTEXT = 20
"""Length of a text in tokens."""

MERGES = 400
"""Number of BPE merges."""

BATCH = 112
COPIES = 32
"""Number of images per batch that also appear as a near duplicate."""
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def learn_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """Return the `count` most frequent pair merges of the texts in order, as in CLIP's BPE."""
    words = Counter(word for text in texts for word in text.lower().replace(".", " .").split())
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in zip(pieces[word], pieces[word][1:], strict=False):
                pairs[pair] += times
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        pieces = {word: _join(parts, best) for word, parts in pieces.items()}
    return merges


def write_tokenizer(texts: list[str], path: Path) -> None:
    """Write the gzipped merge file: a version line, then one merge per line.

    The file has no time stamp, so the same texts give the same bytes.
    """
    lines = ["#version: 0.2"] + [" ".join(merge) for merge in learn_merges(texts, MERGES)]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def write_config(path: Path, vocab_size: int) -> None:
    """Write the config of the open_clip model."""
    vision = {"image_size": SIDE, "layers": [1, 2, 2, 1], "width": 12, "patch_size": None}
    text = {
        "context_length": CONTEXT,
        "vocab_size": vocab_size,
        "width": 96,
        "heads": 4,
        "layers": 2,
    }
    config = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}
    path.write_text(json.dumps(config, indent=2) + "\n")


def train(folder: Path, steps: int, start: Path | None = None, seed: int = 0) -> torch.nn.Module:
    """Return the model, trained for `steps` batches on the collection in `folder`.

    Tokenizer and config are written to the weights folder, and the weights every 500 steps. `start`
    is a file of weights to start from; entries of another shape, such as the positions of another
    image or text size, are trained from scratch.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images = np.load(folder / "images.npy")
    texts = json.loads((folder / "captions.json").read_text())
    write_tokenizer(texts, WEIGHTS / "bpe.txt.gz")
    tokenizer = SimpleTokenizer(str(WEIGHTS / "bpe.txt.gz"), context_length=CONTEXT)
    write_config(WEIGHTS / "clip.json", tokenizer.vocab_size)
    tokens = tokenizer(texts, context_length=CONTEXT)
    config = json.loads((WEIGHTS / "clip.json").read_text())
    model = open_clip.CLIP(**config).to(memory_format=torch.channels_last)
    if start:
        old = {key: value.float() for key, value in load_file(start).items()}
        fitting = {k: v for k, v in old.items() if v.shape == model.state_dict()[k].shape}
        log.info(
            "trained from scratch: %s", model.load_state_dict(fitting, strict=False).missing_keys
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        batch = torch.from_numpy(images[np.sort(rows.numpy())]).permute(0, 3, 1, 2) / 255
        words = model.encode_text(tokens[rows.sort().values], normalize=True)
        batch = views.recolor(views.crops(batch, SIDE, generator, (0.75, 1.0)), generator, 0.7)
        copy = views.crops(batch[:COPIES], SIDE, generator, (0.85, 1.0), turn=0.02, flip=False)
        copy = copy + 0.02 * torch.randn(copy.shape, generator=generator)
        views_in = ((torch.cat([batch, copy]) - MEAN) / STD).to(memory_format=torch.channels_last)
        both = model.encode_image(views_in, normalize=True)
        first, second = both[:BATCH], both[BATCH:]
        scale = 1 / model.logit_scale.exp().clamp(max=100)
        loss = views.contrast_loss(first, words, scale)
        loss = loss + 0.3 * F.cross_entropy(second @ first.T / 0.1, torch.arange(COPIES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log.info("step %d loss %.3f", step, loss.item())
        if step % 500 == 499:
            save_half(model, "clip.safetensors")
    trained: torch.nn.Module = model.eval()
    return trained


def _join(parts: tuple[str, ...], merge: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == merge:
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


def main() -> None:
    """Read the command line and train."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--start", type=Path)
    arguments = parser.parse_args()
    trained = train(arguments.folder, arguments.steps, arguments.start)
    save_half(trained, "clip.safetensors")


if __name__ == "__main__":
    main()
