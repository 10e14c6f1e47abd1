"""Which layers lose most when they are rounded to int8, and those of an ONNX file. Knows graphs and arrays, no trainers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils._extras import require

ROWS = 256
"""Rows of a layer's input that are enough to rank it."""

STEPS = 127
"""Largest number that a rounded weight takes."""


_AXES = {"MatMul": (2,), "Gemm": (2,), "Gather": range(2, 9), "Conv": range(3, 6)}
"""Operator → how many axes its weights may have: ONNX Runtime multiplies by no stack of rounded matrices."""


@dataclass(frozen=True)
class Layer:
    """One node with weights of its own.

    Attributes:
        name: of the node.
        kind: its operator: "MatMul", "Gemm", "Gather" or "Conv".
        given: name of what it reads.
        weight: name of its weights.
        turned: whether the weights are multiplied transposed.
    """

    name: str
    kind: str
    given: str
    weight: str
    turned: bool = False


def layers_of(path: Path) -> list[Layer]:
    """The nodes of a file whose floating-point weights can be rounded: products with a matrix, tables and convolutions."""
    onnx = require("onnx", extra="export", feature="int8 export")
    graph = onnx.load(str(path), load_external_data=False).graph
    axes = {one.name: len(one.dims) for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    found = []
    for node in graph.node:
        weight_at = 0 if node.op_type == "Gather" else 1
        if node.op_type in _AXES and axes.get(node.input[weight_at], 0) in _AXES[node.op_type]:
            said = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            turned = bool(said.get("transB"))
            if node.op_type == "Gemm" and (said.get("transA") or not said.get("alpha", 1) == said.get("beta", 1) == 1):
                continue  # ONNX Runtime rounds no product that is scaled
            found.append(Layer(node.name, node.op_type, node.input[1 - weight_at], node.input[weight_at], turned))
    return found


def noise_of(path: Path, layers: Sequence[Layer], batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Noise of each layer's output, as a share of its power, when its weights and its input are rounded to 256 steps.

    Args:
        path: the float file.
        layers: layers of it.
        batches: inputs by name; the first is enough.

    Returns:
        Name of the layer → ‖rounded − exact‖² / ‖exact‖².
    """
    onnx = require("onnx", extra="export", feature="int8 export")
    model = onnx.load(str(path))
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    inputs = _inputs_of(model, [layer.given for layer in layers if layer.kind != "Gather"], batches[0])
    return {layer.name: _noise(layer, weights[layer.weight], inputs.get(layer.given)) for layer in layers}


def product_noise(rows: np.ndarray, matrix: np.ndarray, *, rounded_rows: bool) -> float:
    """Noise of `rows @ matrix` when the matrix is rounded, one scale for each of its columns.

    Args:
        rows: (..., in); the first `ROWS` rows count.
        matrix: (in, out).
        rounded_rows: whether the rows are rounded as well.

    Returns:
        ‖rounded − exact‖² / ‖exact‖².
    """
    rows = rows.reshape(-1, rows.shape[-1])[:ROWS].astype(np.float32)
    exact = rows @ matrix
    return _share_of(exact, (_rounded_rows(rows) if rounded_rows else rows) @ _rounded_weights(matrix, axis=-1))


def _noise(layer: Layer, weight: np.ndarray, given: np.ndarray | None) -> float:
    if layer.kind == "Gather" or given is None or layer.kind == "Conv" or weight.ndim != 2:
        return _share_of(weight, _rounded_weights(weight, axis=0 if layer.kind == "Conv" else -1))
    return product_noise(given, weight.T if layer.turned else weight, rounded_rows=True)


def _share_of(exact: np.ndarray, rounded: np.ndarray) -> float:
    power = float(np.square(exact, dtype=np.float64).sum())
    return float(np.square(exact - rounded, dtype=np.float64).sum()) / power if power > 0 else 0.0


def _rounded_weights(weight: np.ndarray, axis: int) -> np.ndarray:
    """Symmetric steps, one scale for each index of `axis`."""
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    scale = np.abs(weight).max(axis=others, keepdims=True) / STEPS
    return np.round(weight / np.where(scale > 0, scale, 1)) * scale


def _rounded_rows(rows: np.ndarray) -> np.ndarray:
    """256 steps between the smallest and the largest number, zero among them."""
    low, high = min(0.0, float(rows.min())), max(0.0, float(rows.max()))
    scale = (high - low) / 255 or 1.0
    return np.round(rows / scale) * scale


def _inputs_of(model: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What flows into layers, for one batch: the file with those values among its outputs."""
    onnx = require("onnx", extra="export", feature="int8 export")
    ort = require("onnxruntime", extra="export", feature="int8 export")
    known = {one.name for one in (*model.graph.output, *model.graph.input, *model.graph.initializer)}
    wanted = [name for name in dict.fromkeys(names) if name not in known]
    for name in wanted:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused nodes would hide them
    with tempfile.TemporaryDirectory() as folder:  # a file, since memory holds only models up to 2 GiB
        path = Path(folder) / "watched.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="watched.data")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return dict(zip(wanted, session.run(wanted, dict(feeds))))
