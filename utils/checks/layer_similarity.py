"""How much do the layers' outputs differ? Linear CKA between all pairs, and layers that give back their input.

Kornblith et al. 2019, "Similarity of neural network representations revisited", with the unbiased estimate of HSIC (Song
et al. 2012; Nguyen et al. 2021): with fewer tokens than dimensions the plain one calls unrelated layers alike.
"""

from __future__ import annotations

import numpy as np
import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.inspection import listed, wake_zero_matrices, where
from utils.checks.layers import LayerOutput, layer_outputs
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler

NAME = "layer similarity"
BATCH, LENGTH = 8, 32
UNCHANGED = 1e-6
"""Change of a layer, relative to its input, up to which it does nothing: some roundings of float32 (2**-24 each)."""
FEWEST = 4
"""Rows that the unbiased estimate needs."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Compare what the layers give on the same random inputs, and each layer's output with its input."""
    adapted.eval()
    inputs = sampler.inputs(BATCH, sampler.length(LENGTH))
    layers = layer_outputs(adapted, inputs)
    if not layers:
        return CheckResult(NAME, "skip", f"{adapted.name} is not made of layers that could be compared.")
    if not all(bool(torch.isfinite(layer.rows).all()) for layer in layers):
        return CheckResult(NAME, "skip", "What the layers give is not finite, so it cannot be compared.")
    matrix = similarities(layers, len(inputs))
    rows = [
        {
            "layer": layer.name,
            "change": layer.change,
            "CKA to the layer before": float(matrix[i, i - 1]) if i else None,
            "CKA to the first": float(matrix[i, 0]),
            "CKA to the last": float(matrix[i, -1]),
        }
        for i, layer in enumerate(layers)
    ]
    unchanged = [layer.name for layer in layers if _idle(layer)]
    sleeping = _asleep(adapted, inputs, unchanged) if unchanged else []
    idle = [name for name in unchanged if name not in sleeping]
    measured = {TABLE: rows, "idle_layers": idle, "identity_at_start": sleeping}
    note = f" {listed(sleeping)} starts as the identity, since weights of it are zero." if sleeping else ""
    if idle:
        return CheckResult(
            NAME,
            "warn",
            f"{len(idle)} of {len(layers)} layers give back their input: {listed(idle)}.{note}",
            f"{where(adapted, idle[0])} runs, and what it computes is not used.",
            f"Look at the return statement of {idle[0]}: it must give its result, not its input; or take the layer out.",
            measured,
            arrays={"cka": matrix},
        )
    finding = f"{len(layers)} layers, CKA of the first and the last {matrix[0, -1]:.2f}.{note}"
    return CheckResult(NAME, "pass", finding, measured=measured, arrays={"cka": matrix})


def _idle(layer: LayerOutput) -> bool:
    return layer.change is not None and layer.change <= UNCHANGED


def _asleep(adapted: AdaptedModel, inputs: torch.Tensor, idle: list[str]) -> list[str]:
    """Idle layers that do something as soon as weights that are zero get small noise: a known way to start."""
    wake_zero_matrices(adapted.model)
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.dim() < 2 and not parameter.any():
                parameter.fill_(0.02)  # gates of residual branches
    still = {layer.name for layer in layer_outputs(adapted, inputs) if _idle(layer)}
    return [name for name in idle if name not in still]


def similarities(layers: list[LayerOutput], batch: int) -> np.ndarray:
    """Linear CKA of every pair, (layers, layers); by token, or by example where the layers differ in their rows.

    NaN where a layer gives the same for every row, or there are too few rows.
    """
    rows = [layer.rows for layer in layers]
    if len({len(values) for values in rows}) > 1:
        rows = [values.reshape(batch, -1) if len(values) % batch == 0 else values[:0] for values in rows]
    grams = [_gram(values) if len(values) >= FEWEST else None for values in rows]
    found = np.full((len(rows), len(rows)), np.nan)
    own = [_hsic(gram, gram) if gram is not None else 0.0 for gram in grams]
    for i, one in enumerate(grams):
        for j, other in enumerate(grams[: i + 1]):
            if one is not None and other is not None and one.shape == other.shape and own[i] > 0 and own[j] > 0:
                found[i, j] = found[j, i] = _hsic(one, other) / (own[i] * own[j]) ** 0.5
    return found


def _gram(values: torch.Tensor) -> torch.Tensor:
    """Gram matrix of the centred rows, without its diagonal, (N, N) float64."""
    centred = values.double() - values.double().mean(0)
    scale = centred.norm()
    if float(scale) <= UNCHANGED * float(values.double().norm()):  # what is left is rounding
        return torch.zeros(len(values), len(values), dtype=torch.float64, device=values.device)
    return (centred @ centred.t() / scale**2).fill_diagonal_(0.0)


def _hsic(one: torch.Tensor, other: torch.Tensor) -> float:
    """The unbiased estimate (Song et al. 2012, equation 5) of two Gram matrices without their diagonals."""
    n = len(one)
    trace = (one * other).sum()
    sums = one.sum() * other.sum() / ((n - 1) * (n - 2))
    mixed = one.sum(0) @ other.sum(0) * 2 / (n - 2)
    return float((trace + sums - mixed) / (n * (n - 3)))
