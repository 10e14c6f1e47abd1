"""Do the rows of a batch ignore each other? What a model says about one text must not depend on its neighbours."""

from __future__ import annotations

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.inspection import where
from utils.checks.passage import relative_gap
from utils.checks.report import CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "row independence"
LENGTH = 16
TOLERANCE = 1e-5
"""Relative to the largest logit. The shapes are equal, so healthy models differ by nothing or by the rounding of float32."""

PLACE_TOLERANCE = 1e-4
"""The same, between two places in the batch: matrix products may sum the rows of a batch in different orders."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Keep one row of a batch of two, replace the other, in both orders; the logits of the kept row must stay throughout."""
    adapted.eval()
    length = sampler.length(LENGTH)
    kept, one, two = (sampler.inputs(1, length, seed=seed) for seed in range(3))
    gaps, found = [], []
    for row in (0, 1):
        pairs = [torch.cat([kept, other] if row == 0 else [other, kept]) for other in (one, two)]
        with torch.no_grad():
            first, second = (run_model(adapted, ids).logits[row].float() for ids in pairs)
        if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
            return CheckResult(NAME, "skip", "The logits are not finite, so they cannot be compared.")
        gaps.append(relative_gap(first, second))
        found.append(first)
    moved = relative_gap(*found)
    details = {"relative_difference": max(gaps), "tolerance": TOLERANCE, "difference_of_places": moved}
    if max(gaps) <= TOLERANCE and moved > PLACE_TOLERANCE:
        return _depends_on_place(adapted, moved, details)
    if max(gaps) <= TOLERANCE:
        text = f"Logits of a row stay when its neighbour changes (relative difference {max(gaps):.0e}, tolerance {TOLERANCE:.0e})."
        return CheckResult(NAME, "pass", text, measured=details)
    cause, fix = _explain(adapted)
    finding = f"Logits of a row change by {max(gaps):.1e} (relative, tolerance {TOLERANCE:.0e}) when only its neighbour changes."
    return CheckResult(NAME, "fail", finding, cause, fix, details)


def _depends_on_place(adapted: AdaptedModel, gap: float, details: dict[str, float]) -> CheckResult:
    return CheckResult(
        NAME,
        "fail",
        f"Logits of a row change by {gap:.1e} (relative, tolerance {PLACE_TOLERANCE:.0e}) when it stands elsewhere in the batch.",
        f"forward of {adapted.name} counts along the batch: positions, a mask or a table are made from axis 0 of input_ids.",
        "Take the length from input_ids.shape[1], as in torch.arange(input_ids.shape[1], device=input_ids.device).",
        details,
    )


def _explain(adapted: AdaptedModel) -> tuple[str, str]:
    """The usual suspects by their settings: layers that read (T, B, C) where (B, T, C) comes."""
    for name, module in adapted.model.named_modules():
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and not module.batch_first:
            kind = type(module).__name__
            return (
                f"{where(adapted, name)} is nn.{kind} with batch_first=False: given (B, T, C), it takes the batch for time.",
                f"Write nn.{kind}(…, batch_first=True) for {name}.",
            )
    return (
        f"Somewhere in forward of {adapted.name} values of different rows meet: a softmax, mean or normalisation over axis 0, a "
        "view or reshape that mixes batch and time, or experts with a shared capacity.",
        "Check the axes: softmax and mean over the last axis, transpose before a view that splits heads.",
    )
