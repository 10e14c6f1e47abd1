"""How many dimensions do weights and activations really use? Effective rank by the entropy of the singular values.

Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
"""

from __future__ import annotations

from typing import Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import listed, where
from utils.checks.layers import layer_outputs
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler

NAME = "effective rank"
BATCH, LENGTH = 8, 32
COLLAPSED = 0.02
"""Share of the full rank up to which a matrix, or what a layer gives, has collapsed. Our own measurement on fresh models:
weights at 0.74 and above, activations at 0.54 and above, of all twelve layers of GPT-2 at 0.74 and above."""
ONE_DIMENSION = 1.5
"""Effective rank up to which narrow matrices have collapsed: nearly all lies in one direction."""
FLAT = 1e-6
"""Spread of a layer's rows, relative to their size, that is rounding: they are all the same."""
SMALLEST = 4
"""Matrices with fewer rows or columns are left out: there is no rank to lose."""
LARGEST = 4096
"""Rows, and columns, that are looked at; of a larger matrix a seeded sample, since the work grows with the cube."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Measure every weight matrix, and what every layer gives on random inputs (its mean taken off).

    The details hold one row per matrix and layer; "capacity" is the matrix' share of all free numbers, which are
    r · (rows + columns − r) for a matrix of rank r.
    """
    adapted.eval()
    weights = _weights(adapted)
    activations = _activations(adapted, sampler)
    rows = [*weights, *activations]
    zero = [row["name"] for row in rows if row["effective rank"] == 0]
    faults = [*_weight_faults(adapted, weights), *_activation_faults(adapted, activations)]
    note = f"All zero: {listed(zero)}." if zero else ""
    shares = {
        kind: [r["share"] for r in rows if r["kind"] == kind and r["effective rank"]]
        for kind in ("weight", "activation")
    }
    spans = [f"{kind}s {min(found):.0%} to {max(found):.0%}" for kind, found in shares.items() if found]
    if not spans:
        return CheckResult(NAME, "skip", f"{adapted.name} has no finite matrix with {SMALLEST} rows and columns.")
    return judged(NAME, faults, f"Effective rank, share of the full rank: {', '.join(spans)}.", {TABLE: rows}, note)


def effective_rank(matrix: torch.Tensor) -> float:
    """The exponential of the entropy of the singular values, divided by their sum; 0 for a matrix of zeros.

    Args:
        matrix: (N, P), finite.

    Example:
        >>> round(effective_rank(torch.eye(5)), 3), round(effective_rank(torch.ones(5, 5)), 3)
        (5.0, 1.0)
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().t()
    values = torch.linalg.eigvalsh(wide @ wide.t()).clamp(min=0).sqrt()  # float64: squares keep 8 digits of each
    total = values.sum()
    if float(total) == 0:
        return 0.0
    shares = values / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def _weights(adapted: AdaptedModel) -> list[dict[str, Any]]:
    rows, free = [], []
    for name, parameter in adapted.model.named_parameters():
        matrix = parameter.detach().reshape(parameter.shape[0], -1) if parameter.dim() >= 2 else None
        if matrix is None or min(matrix.shape) < SMALLEST or not torch.isfinite(matrix).all():
            continue
        if _is_table(name, matrix):
            continue
        rank, full = effective_rank(_sample(matrix)), min(*matrix.shape, LARGEST)
        rank = min(rank, float(full))
        scaled = rank / full * min(matrix.shape)
        free.append(scaled * (sum(matrix.shape) - scaled))
        rows.append(_row("weight", name, matrix, rank, full))
    for row, numbers in zip(rows, free, strict=True):
        row["capacity"] = numbers / (sum(free) or 1.0)
    return rows


def _activations(adapted: AdaptedModel, sampler: Sampler) -> list[dict[str, Any]]:
    inputs = sampler.inputs(BATCH, sampler.length(LENGTH))
    rows = []
    for layer in layer_outputs(adapted, inputs):
        if min(layer.rows.shape) < SMALLEST or not torch.isfinite(layer.rows).all():
            continue
        values = _sample(layer.rows)
        spread = values - values.mean(0)
        flat = float(spread.norm()) <= FLAT * float(values.norm())
        rank = float(bool(values.any())) if flat else effective_rank(spread)
        rows.append(_row("activation", layer.name, layer.rows, rank, min(values.shape[0] - 1, values.shape[1])))
    return rows


def _row(kind: str, name: str, matrix: torch.Tensor, rank: float, full: int) -> dict[str, Any]:
    shape = " × ".join(map(str, matrix.shape))
    return {"kind": kind, "name": name, "shape": shape, "effective rank": rank, "share": rank / full, "capacity": None}


def _sample(matrix: torch.Tensor) -> torch.Tensor:
    """At most `LARGEST` rows and columns, drawn with a seed."""
    generator = torch.Generator().manual_seed(0)
    for axis in (0, 1):
        if matrix.shape[axis] > LARGEST:
            chosen = torch.randperm(matrix.shape[axis], generator=generator)[:LARGEST].to(matrix.device)
            matrix = matrix.index_select(axis, chosen)
    return matrix


def _is_table(name: str, matrix: torch.Tensor) -> bool:
    """Rows that are all the same in a bare parameter: decay rates and the like (Mamba's A_log), which multiply nothing."""
    return not name.endswith("weight") and bool((matrix == matrix[0]).all())


def _collapsed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if row["effective rank"] > 0 and (row["share"] <= COLLAPSED or row["effective rank"] <= ONE_DIMENSION)
    ]


def _weight_faults(adapted: AdaptedModel, rows: list[dict[str, Any]]) -> list[Fault]:
    flat = _collapsed(rows)
    if not flat:
        return []
    name, rank = flat[0]["name"], flat[0]["effective rank"]
    return [
        Fault(
            "warn",
            f"{len(flat)} of {len(rows)} matrices have collapsed: {listed([row['name'] for row in flat])}.",
            f"{where(adapted, name)} ({flat[0]['shape']}) has an effective rank of {rank:.1f}: its rows are nearly multiples of few.",
            f"Initialise {name} at random (nn.init.normal_, std 0.02); if training led here, use less weight decay or a smaller rate.",
        )
    ]


def _activation_faults(adapted: AdaptedModel, rows: list[dict[str, Any]]) -> list[Fault]:
    flat = _collapsed(rows)
    if not flat:
        return []
    name, rank = flat[0]["name"], flat[0]["effective rank"]
    return [
        Fault(
            "warn",
            f"What {len(flat)} of {len(rows)} layers give has collapsed: {listed([row['name'] for row in flat])}.",
            f"{where(adapted, name)} gives nearly the same for every token (effective rank {rank:.1f}). Attention without skip "
            "connections does that, doubly fast with depth (Dong et al. 2021).",
            f"Add the input of {name} to its output (x = x + sublayer(x)), and look at what comes before it.",
        )
    ]
