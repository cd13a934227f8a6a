"""A face detector as an ONNX file for which every white cell is a face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CANVAS = 64


def write_detector(path: Path, *, side: int | str = CANVAS, outputs: int = 6) -> Path:
    """Write a detector of white cells: scores from stride 32 only, each box the cell itself."""
    nodes, constants, made = [], [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    gray = helper.make_node("ReduceMean", ["image"], ["gray"], axes=[1], keepdims=1)
    pool = helper.make_node("AveragePool", ["gray"], ["cells"], kernel_shape=[32, 32],
                            strides=[32, 32])  # fmt: skip
    over = helper.make_node("Sub", ["cells", constant("half", np.float32(0.8))], ["over"])
    steep = helper.make_node("Mul", ["over", constant("steep", np.float32(30))], ["logits"])
    score = helper.make_node("Sigmoid", ["logits"], ["score"])
    shape = constant("column", np.array([1, -1, 1], np.int64))
    flat = helper.make_node("Reshape", ["score", shape], ["flat"])
    again = helper.make_node("Concat", ["flat", "flat"], ["pairs"], axis=2)  # two anchors a cell
    last = helper.make_node("Reshape", ["pairs", shape], ["score_32"])
    nodes += [gray, pool, over, steep, score, flat, again, last]
    cells = {stride: 2 * (CANVAS // stride) ** 2 for stride in (8, 16, 32)}
    for stride, count in cells.items():
        if stride != 32:
            zeros = constant(f"zeros_{stride}", np.zeros((1, count, 1), np.float32))
            nodes.append(helper.make_node("Identity", [zeros], [f"score_{stride}"]))
        box = np.tile(np.array([0, 0, 1, 1], np.float32), (1, count, 1))
        nodes.append(
            helper.make_node("Identity", [constant(f"b_{stride}", box)], [f"box_{stride}"])
        )
    made += [(f"score_{s}", n, 1) for s, n in cells.items()]
    made += [(f"box_{s}", n, 4) for s, n in cells.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, width])
              for name, count, width in made[:outputs]]  # fmt: skip
    graph = helper.make_graph(nodes, "white cells", [image], values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path
