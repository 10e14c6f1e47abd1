"""Which tokens, or pixels, does the model's answer rest on? Integrated gradients, with the gap to completeness.

Sundararajan et al. 2017, "Axiomatic attribution for deep networks": the attributions add up to the difference between the
score of the input and that of the baseline. By how much they do not is the error of the integral, and is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.continuous import ContinuousInput
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "attribution"
LENGTH = 16
LARGEST_GAP = 0.01
"""Gap to completeness, relative to the difference that is explained; the authors of the method ask for 5%."""
ROUNDING = 1e-5
"""A difference below this share of the largest logit is rounding of float32 (2**-24 for each of some hundred sums)."""
ZEROS, NEUTRAL = "zeros", "neutral"
MOST_STEPS = {ZEROS: 80, NEUTRAL: 176}
"""Nodes of the integral that are spent on each baseline, the first first. With zeros a normalisation makes the score steep
near the baseline, and in a deep model without learned positions each layer a thousand times steeper than the one before:
then only a baseline that is not zero has an integral to speak of."""
ROWS = 8
"""Nodes of one panel of the integral, which run as one batch."""

Score = Callable[[torch.Tensor], torch.Tensor]
Nodes = Sequence[tuple[float, float]]


@dataclass
class Attribution:
    """What `explain` found.

    Attributes:
        values: like the input's values: (T, D) of embeddings, or (C, H, W) of pixels.
        difference: score of the input − score of the baseline.
        gap: distance of the sum of the values from the difference, relative to the difference.
        steps: nodes of the integral, each a forward and a backward pass of one row.
        baseline: "zeros", or "neutral": the padding token at every position (a grey image).
    """

    values: torch.Tensor
    difference: float
    gap: float
    steps: int
    baseline: str = ZEROS


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Explain the highest score on one random input, against a baseline of zeros or of padding (black, or grey)."""
    adapted.eval().requires_grad_(False)  # only the gradients of the input are wanted
    inputs = sampler.inputs(1, sampler.length(LENGTH))
    place = ContinuousInput.of(adapted, inputs)
    if place is None:
        return CheckResult(
            NAME, "skip", f"No module of {adapted.name} looks the token ids up, so nothing can be moved."
        )
    with torch.no_grad():
        logits = run_model(adapted, inputs).logits
    if not torch.isfinite(logits).all():
        return CheckResult(NAME, "skip", "The logits are not finite, so there is no score to explain.")
    score, words = _highest(adapted, logits)
    found = explain(place, score, noise=ROUNDING * float(logits.abs().max()))
    rows, arrays = _by_token(found, inputs) if adapted.contract.takes_tokens else _by_pixel(found)
    measured: dict[str, Any] = {TABLE: rows, "difference": found.difference, "completeness_gap": found.gap}
    measured |= {"steps": found.steps, "baseline": found.baseline, "explained": words}
    if found.gap > LARGEST_GAP:
        return CheckResult(
            NAME,
            "warn",
            f"The attributions of {words} miss the difference of {found.difference:.3g} by {found.gap:.1%} at {found.steps} steps.",
            "The score jumps on the way from the baseline to the input (very large weights, hard gates, rounding), or rows of a "
            "batch depend on each other.",
            "Take the attributions as a rough picture only.",
            measured,
            arrays=arrays,
        )
    finding = f"{words}: {_leading(rows)}; attributions add up to the difference of {found.difference:.3g} within {found.gap:.2%} ({found.steps} steps)."
    return CheckResult(NAME, "pass", finding, measured=measured, arrays=arrays)


def explain(place: ContinuousInput, score: Score, noise: float = 0.0) -> Attribution:
    """Integrate with more and more nodes until the gap is below `LARGEST_GAP`, and give the best of what was tried.

    Args:
        place: an input of one row, and where it becomes numbers.
        score: logits → (B,), what is explained.
        noise: differences below this cannot be told from rounding.
    """
    first = _integrated(place, score, ZEROS, noise)
    if first.gap <= LARGEST_GAP:
        return first
    return min(first, _integrated(place, score, NEUTRAL, noise), key=lambda found: found.gap)


@dataclass
class _Panel:
    """A part of the way: its ends, their scores, its attributions, and by how much those miss the difference of the scores."""

    low: float
    high: float
    scores: tuple[float, float]
    values: torch.Tensor

    @property
    def gap(self) -> float:
        return float(self.values.double().sum()) - (self.scores[1] - self.scores[0])


def _integrated(place: ContinuousInput, score: Score, kind: str, noise: float) -> Attribution:
    """Cut the way in halves where the attributions miss most: each part's difference is known, and so is its error."""
    baseline = (torch.zeros_like(place.values) if kind == ZEROS else place.neutral())[0]

    def score_at(share: float) -> float:
        with torch.no_grad():
            return float(score(place.run(lambda values: baseline + share * (values - baseline))))

    def panel(low: float, high: float, scores: tuple[float, float]) -> _Panel:
        return _Panel(low, high, scores, integrated_gradients(place, score, nodes(ROWS, low, high), baseline))

    ends = score_at(0.0), score_at(1.0)
    difference = ends[1] - ends[0]
    scale = max(abs(difference), noise, 1e-30)
    panels = [panel(0.0, 1.0, ends)]
    steps = ROWS
    while sum(abs(part.gap) for part in panels) > LARGEST_GAP * scale and steps + 2 * ROWS <= MOST_STEPS[kind]:
        worst = max(panels, key=lambda part: abs(part.gap))
        middle = (worst.low + worst.high) / 2
        between = score_at(middle)
        panels.remove(worst)
        panels.append(panel(worst.low, middle, (worst.scores[0], between)))
        panels.append(panel(middle, worst.high, (between, worst.scores[1])))
        steps += 2 * ROWS
    values = torch.stack([part.values for part in panels]).sum(0)
    gap = abs(float(values.double().sum()) - difference) / scale
    return Attribution(values, difference, gap, steps, kind)


def integrated_gradients(
    place: ContinuousInput, score: Score, at: Nodes, baseline: torch.Tensor | None = None
) -> torch.Tensor:
    """Attributions by integrated gradients, shaped like one row of `place.values`.

    Args:
        place: an input of one row.
        score: logits → (B,).
        at: (share of the way, weight) of the integral's nodes; the weights sum to 1 for the whole way.
        baseline: where the way begins, shaped like one row of `place.values`; None: zeros.

    Example:
        >>> place = ContinuousInput.of(adapted, ids)                            # ids: (1, T)
        >>> values = integrated_gradients(place, lambda logits: logits[:, -1, 7], nodes(50))
        >>> values.sum(-1)                                                      # (T,), one number per token
    """
    values = place.values[0].detach()
    begin = torch.zeros_like(values) if baseline is None else baseline
    total = torch.zeros_like(values, dtype=torch.float32)
    for start in range(0, len(at), ROWS):
        part = at[start : start + ROWS]
        shares, weights = (torch.tensor(x, dtype=values.dtype, device=values.device) for x in zip(*part, strict=True))
        shape = (len(part), *[1] * values.dim())
        moved = (begin + shares.view(shape) * (values - begin)).requires_grad_()
        with (
            torch.enable_grad(),
            torch.backends.cudnn.flags(enabled=False),
        ):  # cuDNN's RNNs have no gradient in eval mode
            scores = score(place.run(lambda _, moved=moved: moved, rows=len(part)))  # type: ignore[misc]
            if not scores.requires_grad:  # nothing that the input goes through has a slope
                continue
            (gradient,) = torch.autograd.grad(scores.sum(), moved, allow_unused=True)
        if gradient is not None:
            total += (gradient * weights.view(shape)).sum(0).float()
    return total * (values - begin).float()


def nodes(count: int, low: float = 0.0, high: float = 1.0) -> list[tuple[float, float]]:
    """Gauss-Legendre nodes between `low` and `high` as (place, weight); the weights sum to high − low."""
    roots, weights = np.polynomial.legendre.leggauss(count)
    half = (high - low) / 2
    return [(float(low + half * (1 + root)), float(half * weight)) for root, weight in zip(roots, weights, strict=True)]


def _highest(adapted: AdaptedModel, logits: torch.Tensor) -> tuple[Score, str]:
    """The model's answer on the input: the highest score at the last position (the middle one where all see all)."""
    if logits.dim() == 2:
        best = int(logits[0].argmax())
        return lambda scores: scores[:, best], f"score of class {best}"
    last = logits.shape[1] - 1
    position = last if adapted.contract.task in ("lm", "seq2seq") else last // 2
    best = int(logits[0, position].argmax())
    kind = "token" if adapted.contract.task in ("lm", "masked", "seq2seq") else "class"
    return lambda scores: scores[:, position, best], f"score of {kind} {best} at position {position}"


def _by_token(found: Attribution, ids: torch.Tensor) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    values = found.values.sum(-1)  # (T,)
    whole = float(values.abs().sum()) or math.nan
    rows = [
        {"position": i, "token id": int(token), "attribution": float(value), "share": abs(float(value)) / whole}
        for i, (token, value) in enumerate(zip(ids[0], values, strict=True))
    ]
    return rows, {"tokens": values.cpu().numpy()}


def _by_pixel(found: Attribution) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Sums of a grid of 4 × 4 fields, and the whole picture."""
    picture = found.values.sum(0)  # (H, W)
    whole = float(picture.abs().sum()) or math.nan
    rows = []
    for i, band in enumerate(picture.tensor_split(4, 0)):
        for j, field in enumerate(band.tensor_split(4, 1)):
            rows.append(
                {"row": i, "column": j, "attribution": float(field.sum()), "share": float(field.abs().sum()) / whole}
            )
    return rows, {"pixels": picture.cpu().numpy()}


def _leading(rows: list[dict[str, Any]]) -> str:
    """Where most of the attribution lies, in words."""
    first = max(rows, key=lambda row: 0.0 if math.isnan(row["share"]) else row["share"])
    where = (
        f"position {first['position']}"
        if "position" in first
        else f"field ({first['row']}, {first['column']}) of 4 × 4"
    )
    return "nothing moves it" if math.isnan(first["share"]) else f"{first['share']:.0%} from {where}"
