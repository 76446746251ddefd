"""Faces for tests: a network with YuNet's interface that takes bright squares for faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CELL, FACE = 32, 96
"""Pixels, in a picture whose shorter side is 320: what must be bright; how large the face is then."""


def write_yunet(path: Path) -> Path:
    """Writes an ONNX with YuNet's inputs and outputs: a cell of 32 bright pixels is a face of 96."""
    nodes, tensors, outputs = [], [], []
    channels = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    for stride in (8, 16, 32):
        for kind, count in channels.items():
            weight = np.zeros((count, 3, stride, stride), np.float32)
            bias = np.zeros(count, np.float32)
            if kind in ("cls", "obj") and stride == CELL:  # a sigmoid of the mean brightness
                weight += 40 / (255 * weight[0].size)
            if kind in ("cls", "obj"):
                bias -= 32
            if kind == "bbox":  # where its middle is in the cell; logarithm of its size in cells
                bias[:] = (0.5, 0.5, np.log(FACE / stride), np.log(FACE / stride))
            name = f"{kind}_{stride}"
            tensors += [
                numpy_helper.from_array(weight, f"{name}.weight"),
                numpy_helper.from_array(bias, f"{name}.bias"),
                numpy_helper.from_array(np.asarray([1, -1, count], np.int64), f"{name}.shape"),
            ]
            inputs = ["input", f"{name}.weight", f"{name}.bias"]
            nodes.append(
                helper.make_node(
                    "Conv", inputs, [f"{name}.map"], strides=[stride] * 2, kernel_shape=[stride] * 2
                )
            )
            last = f"{name}.map"
            if kind in ("cls", "obj"):
                nodes.append(helper.make_node("Sigmoid", [last], [f"{name}.score"]))
                last = f"{name}.score"
            nodes.append(helper.make_node("Transpose", [last], [f"{name}.last"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"{name}.last", f"{name}.shape"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, count]))
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 320, 320])
    graph = helper.make_graph(nodes, "bright squares", [picture], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    path.write_bytes(model.SerializeToString())
    return path


def square(
    left: int, top: int, *, side: int = 64, size: tuple[int, int] = (320, 480)
) -> NDArray[np.uint8]:
    """(H, W, 3): a bright square on dark noise."""
    picture = np.random.default_rng(0).integers(0, 60, (*size, 3), dtype=np.uint8)
    picture[max(0, top) : top + side, max(0, left) : left + side] = 255
    return picture
