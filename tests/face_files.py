"""Face detectors as ONNX files that answer with known faces, in every form that is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 160

# A face, and where a network may see it: stride, size of the square, row and column of its cell.
KNOWN = [
    ((3, 5, 20, 30), (8, 16, 2, 1)),
    ((100.5, 90.25, 130.5, 140), (8, 32, 14, 14)),
    ((20, 60, 90, 150), (16, 64, 6, 3)),
    ((-30, 40, 75, 150.5), (16, 128, 5, 1)),
    ((0, 0, 160, 160), (32, 256, 2, 2)),
    ((50, -80, 200, 170), (32, 512, 1, 4)),
]
STRIDES = {8: (16, 32), 16: (64, 128), 32: (256, 512)}


def encoded(box: Sequence[float], center: tuple[float, float], size: float) -> np.ndarray:
    """Return dx, dy, dw, dh from a square to a box: the inverse of what is tested, by hand."""
    x0, y0, x1, y1 = box
    return np.array(
        [
            ((x0 + x1) / 2 - center[0]) / size,
            ((y0 + y1) / 2 - center[1]) / size,
            np.log((x1 - x0) / size),
            np.log((y1 - y0) / size),
        ],
        np.float32,
    )


def priors_outputs(known: Sequence[tuple] = KNOWN) -> list[np.ndarray]:
    """Return the three outputs of a network that sees these faces, each at 0.9."""
    rows = {}
    for stride, sizes in STRIDES.items():
        for row in range(SIDE // stride):
            for column in range(SIDE // stride):
                for size in sizes:
                    rows[stride, size, row, column] = len(rows)
    boxes = np.random.default_rng(0).normal(size=(1, len(rows), 4)).astype(np.float32)
    scores = np.tile(np.array([0.9, 0.1], np.float32), (1, len(rows), 1))
    for box, (stride, size, row, column) in known:
        center = ((column + 0.5) * stride, (row + 0.5) * stride)
        place = rows[stride, size, row, column]
        boxes[0, place] = encoded(box, center, size) / np.array([0.1, 0.1, 0.2, 0.2])
        scores[0, place] = [0.1, 0.9]
    return [boxes, scores, np.zeros((1, len(rows), 10), np.float32)]


def mxnet_outputs(known: Sequence[tuple] = KNOWN) -> list[np.ndarray]:
    """Return the nine outputs of a network that sees these faces, each at 0.9.

    The original has x1 and y1 on the last pixel of a box; so has its square over the pixels 0 to
    15, whose center is 7.5.
    """
    outputs = []
    rng = np.random.default_rng(0)
    for stride, sizes in ((32, (512, 256)), (16, (128, 64)), (8, (32, 16))):
        count = SIDE // stride
        scores = np.full((1, 4, count, count), 0.9, np.float32)
        scores[:, 2:] = 0.1
        boxes = rng.normal(size=(1, 8, count, count)).astype(np.float32)
        for (x0, y0, x1, y1), (at, size, row, column) in known:
            if at != stride:
                continue
            square = sizes.index(size)
            last = (x1 - 1, y1 - 1)
            center_x, center_y = 7.5 + column * stride, 7.5 + row * stride
            width, height = last[0] - x0 + 1, last[1] - y0 + 1
            boxes[0, 4 * square : 4 * square + 4, row, column] = [
                (x0 + 0.5 * (width - 1) - center_x) / size,
                (y0 + 0.5 * (height - 1) - center_y) / size,
                np.log(width / size),
                np.log(height / size),
            ]
            scores[0, square, row, column] = 0.1
            scores[0, 2 + square, row, column] = 0.9
        outputs += [scores, boxes, np.zeros((1, 20, count, count), np.float32)]
    return outputs


def ordered(boxes: np.ndarray) -> np.ndarray:
    return boxes[np.lexsort(boxes.round(1).T)]


FACES = ordered(np.array([box for box, _ in KNOWN], np.float32))


def write_file(
    path: Path,
    outputs: Sequence[np.ndarray],
    shape: Sequence[int | str] = (1, 3, SIDE, SIDE),
    inputs: int = 1,
) -> Path:
    """Write a network that gives these outputs whatever it sees."""
    constants = [numpy_helper.from_array(value, f"c{k}") for k, value in enumerate(outputs)]
    nodes = [helper.make_node("Identity", [f"c{k}"], [f"o{k}"]) for k in range(len(outputs))]
    values = [
        helper.make_tensor_value_info(f"o{k}", TensorProto.FLOAT, value.shape)
        for k, value in enumerate(outputs)
    ]
    images = [
        helper.make_tensor_value_info(f"image{k}", TensorProto.FLOAT, shape) for k in range(inputs)
    ]
    graph = helper.make_graph(nodes, "constant", images, values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


SCRFD_SIDE = 256
SCRFD_INPUT = (1, 3, SCRFD_SIDE, SCRFD_SIDE)


def scrfd_outputs(strides: Sequence[int], key_points: bool, batched: bool) -> list[np.ndarray]:
    """Return what InsightFace's detectors give for `KNOWN`: distances from a cell's corner.

    Three strides have two anchors a cell, five have one; here the known faces lie on the first.
    """
    anchors = 2 if len(strides) == 3 else 1
    groups: tuple[list[np.ndarray], ...] = ([], [], [])
    for stride in strides:
        side = SCRFD_SIDE // stride
        scores = np.full((side, side, anchors, 1), 0.1, np.float32)
        boxes = np.ones((side, side, anchors, 4), np.float32)
        for (x0, y0, x1, y1), (at, _, row, column) in KNOWN:
            if at == stride:
                x, y = column * stride, row * stride
                scores[row, column, 0] = 0.9
                boxes[row, column, 0] = np.array([x - x0, y - y0, x1 - x, y1 - y]) / stride
        points = np.zeros((side, side, anchors, 10), np.float32)
        for group, values in zip(groups, (scores, boxes, points), strict=True):
            flat = values.reshape(-1, values.shape[-1])
            group.append(flat[None] if batched else flat)
    return [output for group in groups[: 2 + key_points] for output in group]
