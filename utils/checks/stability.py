"""Are the numbers sound? NaN and infinities, extreme and constant logits, repeatability, mixed precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import output_head, wake_zero_matrices, watched, where
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model
from utils.errors import CheckError

NAME = "numerical stability"
BATCH, LENGTH = 2, 32
EXTREME_LOGIT = 1e3
"""Beyond this the softmax is one-hot to the last bit, and float16 (largest number 65504) has no room to multiply."""
PRECISION_GAP = 0.1
"""Largest relative difference between float32 and mixed precision. bfloat16 rounds to 2**-8 = 0.4% per operation; our own
measurement: 24 layers and 14 Hugging Face families stay below 1%."""
SAME = 1e-6
"""Differences below this share of the logits' scale are rounding of float32 (2**-24 per operation)."""


@dataclass
class Passage:
    """One forward pass: the logits, the first module that was not finite, and one fingerprint per module output."""

    logits: torch.Tensor
    first_bad: str | None
    trail: list[tuple[str, float]]


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Run random ids in eval mode, twice the same and once others, then under autocast; nothing is trained."""
    adapted.eval()
    length = sampler.length(LENGTH)
    ids = sampler.inputs(BATCH, length)
    first = _pass(adapted, ids)
    logits = first.logits.float()
    largest = float(logits.abs().max())
    details: dict[str, Any] = {"max_abs_logit": largest, "first_module_not_finite": first.first_bad, TABLE: []}
    if not math.isfinite(largest):
        return _not_finite(adapted, first, details)
    again, other = _pass(adapted, ids), _pass(adapted, sampler.inputs(BATCH, length, seed=1))
    gaps, narrow = _mixed_precision(adapted, ids, logits)
    faults = [
        *_hidden_nan(adapted, first),
        *_extreme(adapted, largest),
        *_narrow_logits(adapted, first.logits),
        *_random(adapted, first, again),
        *_constant(adapted, sampler, first, other),  # may wake zero matrices, so nothing is compared after it
        *narrow,
    ]
    details[TABLE] = [{"precision": name, "relative difference": gap} for name, gap in gaps.items()]
    agreement = ", ".join(f"{name} within {gap:.1%} of float32" for name, gap in gaps.items())
    return judged(NAME, faults, f"All values finite, largest logit {largest:.3g}, repeatable; {agreement}.", details)


def _pass(adapted: AdaptedModel, ids: torch.Tensor) -> Passage:
    trail: list[tuple[str, float]] = []
    bad: list[str] = []

    def look(name: str, tensor: torch.Tensor) -> None:
        total = float(tensor.double().sum())
        if math.isnan(total) or total == math.inf:  # -inf alone is what masks are made of
            bad.append(name)
        trail.append((name, total))

    with torch.no_grad(), watched(adapted.model, look):
        logits = run_model(adapted, ids).logits
    return Passage(logits, bad[0] if bad else None, trail)


def _not_finite(adapted: AdaptedModel, passage: Passage, details: dict[str, Any]) -> CheckResult:
    share = float((~torch.isfinite(passage.logits)).double().mean())
    kind = "NaN" if bool(torch.isnan(passage.logits).any()) else "infinite"
    broken = [name for name, p in adapted.model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        cause, fix = (
            f"The weight {broken[0]} itself holds NaN or infinities.",
            f"Initialise {broken[0]} again, or load another checkpoint.",
        )
    elif passage.first_bad is not None:
        cause = f"The first module whose output is not finite is {where(adapted, passage.first_bad)}."
        fix = f"Look at what goes into {passage.first_bad}: division by zero, a logarithm or root of 0, a softmax over a fully masked row."
    else:
        cause = (
            f"Every submodule of {adapted.name} returns finite values, so it happens in forward after the last module."
        )
        fix = "Look at the statements of forward between the last module and the returned logits."
    finding = f"{share:.0%} of the logits are {'not finite (' + kind + ')'}."
    return CheckResult(NAME, "fail", finding, cause, fix, details)


def _hidden_nan(adapted: AdaptedModel, passage: Passage) -> list[Fault]:
    if passage.first_bad is None:
        return []
    return [
        Fault(
            "warn",
            f"{passage.first_bad} returns NaN or infinities, although the logits are finite.",
            f"Something after {where(adapted, passage.first_bad)} discards them; their gradients may still be NaN.",
            f"Make the output of {passage.first_bad} finite: mask before the softmax, never with whole rows of -inf.",
        )
    ]


def _extreme(adapted: AdaptedModel, largest: float) -> list[Fault]:
    if largest <= EXTREME_LOGIT:
        return []
    head = output_head(adapted)
    name = head[0] if head else "the output head"
    return [
        Fault(
            "warn",
            f"The largest logit is {largest:.3g}; beyond {EXTREME_LOGIT:g} the softmax is one-hot and float16 overflows.",
            f"The values that reach {name}, or its weights, are too large.",
            f"Normalise before the head (a final LayerNorm), or initialise {name} with std 0.02.",
        )
    ]


def _narrow_logits(adapted: AdaptedModel, logits: torch.Tensor) -> list[Fault]:
    """Logits in fewer bits than every weight: the loss is a difference of large sums, and loses what was rounded away."""
    weights = {parameter.dtype for parameter in adapted.model.parameters() if parameter.is_floating_point()}
    narrow = (torch.float16, torch.bfloat16)
    if logits.dtype not in narrow or not weights or weights & set(narrow):
        return []
    kind = str(logits.dtype).removeprefix("torch.")
    return [
        Fault(
            "warn",
            f"The logits are {kind}, although no weight is.",
            f"forward of {adapted.name} converts them (.half(), .to(torch.{kind})): the loss is computed from rounded numbers, and "
            "float16 overflows beyond 65504.",
            "Remove the conversion; where speed is wanted, train with precision='16-mixed' or 'bf16-mixed'.",
        )
    ]


def _random(adapted: AdaptedModel, first: Passage, again: Passage) -> list[Fault]:
    gap = _gap(first.logits, again.logits)
    if gap <= SAME:
        return []
    pairs = zip(first.trail, again.trail, strict=False)
    name = next((a[0] for a, b in pairs if a[0] == b[0] and abs(a[1] - b[1]) > SAME * (1 + abs(a[1]))), None)
    place = f"the first module that differs is {where(adapted, name)}" if name else "it happens between the modules"
    return [
        Fault(
            "fail",
            f"In eval mode the same input gives different logits (relative difference {gap:.1e}).",
            f"Random numbers are drawn although training is off; {place}.",
            "Use nn.Dropout, or F.dropout(x, p, training=self.training), and draw no random numbers in eval mode.",
        )
    ]


def _constant(adapted: AdaptedModel, sampler: Sampler, first: Passage, other: Passage) -> list[Fault]:
    """A model whose logits do not change with its input. A head that starts at zero is woken first."""
    if sampler.vocabulary == 1 or _gap(first.logits, other.logits) > SAME:
        return []
    if wake_zero_matrices(adapted.model):
        length = sampler.length(LENGTH)
        pair = [_pass(adapted, sampler.inputs(BATCH, length, seed=seed)).logits for seed in (0, 1)]
        if _gap(*pair) > SAME:
            return []
    return [
        Fault(
            "fail",
            "Different inputs give the same logits: the output ignores its input.",
            f"In forward of {adapted.name} the token ids do not reach the logits: a constant is returned, or everything that "
            "depends on the ids is multiplied by zero or overwritten.",
            "Follow the ids from the embedding to the returned logits; each step must read the value of the step before it.",
        )
    ]


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the scale of the values."""
    if a.shape != b.shape or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return math.inf
    scale = float(torch.maximum(a.abs().max(), b.abs().max()))
    return float((a.float() - b.float()).abs().max()) / scale if scale > 0 else 0.0


def _mixed_precision(
    adapted: AdaptedModel, ids: torch.Tensor, reference: torch.Tensor
) -> tuple[dict[str, float], list[Fault]]:
    """Relative difference (2-norm) of the logits under autocast: bfloat16 everywhere, float16 on a GPU."""
    kinds = {"bfloat16": torch.bfloat16, **({"float16": torch.float16} if ids.device.type == "cuda" else {})}
    gaps: dict[str, float] = {}
    faults: list[Fault] = []
    for name, kind in kinds.items():
        try:
            with torch.no_grad(), torch.autocast(ids.device.type, dtype=kind):
                logits = run_model(adapted, ids).logits.float()
        except CheckError as error:
            faults.append(_precision_fault(name, f"does not run: {error}", "Operands of two types meet in forward."))
            continue
        gaps[name] = float((logits - reference).norm() / reference.norm().clamp(min=1e-30))
        if not math.isfinite(gaps[name]):
            faults.append(
                _precision_fault(name, "gives NaN or infinities.", "A value leaves the range of the narrow type.")
            )
        elif gaps[name] > PRECISION_GAP:
            faults.append(
                _precision_fault(name, f"differs by {gaps[name]:.0%} from float32.", "Small differences are amplified.")
            )
    return gaps, faults


def _precision_fault(precision: str, finding: str, cause: str) -> Fault:
    return Fault(
        "warn",
        f"Under autocast {precision} {finding}",
        cause,
        "Let forward follow the type of its inputs (x.to(other.dtype), no hard-coded .float() or dtype=), or train with precision='32-true'.",
    )
