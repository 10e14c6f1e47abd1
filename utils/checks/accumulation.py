"""Does accumulating gradients over micro-batches give the gradient of the whole batch? A certificate on rows of unequal length.

The arithmetic is that of training: every micro-batch counts by its share of the labels of the window (`training.engine.module`),
never as an equal part, which would be wrong as soon as rows differ in length. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.adapters.losses import IGNORED_LABEL, counted
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.wide_masks import MatchingMasks
from utils.checks.faults import Fault, judged
from utils.checks.inspection import listed, where
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, labels_of
from utils.errors import CheckError

NAME = "gradient accumulation"
ROWS, LENGTH = 4, 12
SPLITS = (2, 4)
"""Numbers of micro-batches that the window is cut into; the window at once is the reference."""
TOLERANCE = 1e-5
"""Of the norm of all gradients; what is promised of accumulation. Sums of float32 in another order differ by about 1e-7 per operation: our
own measurement: 1e-7 on small models, 4e-7 on a GPT-2 of 124 million parameters."""
COARSE = 2e-2
"""The same for weights in 16 bits, whose rounding is 2**-8 in bfloat16."""
Batch = dict[str, torch.Tensor]


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Gradients of 4 rows at once against those of 2 and of 4 micro-batches, in eval mode, so that no random number differs.

    Auxiliary losses (the balance of experts) belong to a micro-batch by design and are left out. BatchNorm, which takes
    statistics of each micro-batch in training, is named.
    """
    refusal = _refusal(adapted)
    if refusal:
        return CheckResult(NAME, "skip", refusal)
    _prepare(adapted)
    batch = _ragged(adapted, sampler)
    gaps = {parts: _difference(adapted, batch, parts) for parts in SPLITS}
    if any(math.isnan(gap) for gap, _ in gaps.values()):
        return CheckResult(NAME, "skip", "The gradients are zero or not finite, so they cannot be compared.")
    faults = [*_disagreement(adapted, batch, gaps), *_statistics_of_the_batch(adapted)]
    return judged(NAME, faults, _told(adapted, gaps), _measured(adapted, gaps))


def _refusal(adapted: AdaptedModel) -> str:
    """Why there is nothing to certify; empty where there is."""
    contract = adapted.contract
    if not any(p.requires_grad for p in adapted.parameters()):
        return f"Every parameter of {adapted.name} is frozen: there are no gradients."
    if not contract.scores_tokens or contract.output_size == 1:
        return f"{adapted.name} gives no scores to choose from, so it has no loss of its own."
    if contract.task == "lm" and contract.max_length == 1:
        return f"{adapted.name} takes a single token: there is no next one."
    norms = _batch_norms(adapted)
    if (
        norms and not contract.takes_tokens
    ):  # usual there, and in eval mode a fresh model's values fade away between them
        return f"BatchNorm takes its statistics from each micro-batch ({listed(norms)}), so accumulation differs by design."
    return ""


# ---- the window ------------------------------------------------------------------------------------------------------
def _ragged(adapted: AdaptedModel, sampler: Sampler) -> Batch:
    """Four rows of unequal length, padded on the right: the padding carries no label, and is masked where there is a mask."""
    inputs = sampler.inputs(ROWS, sampler.length(LENGTH))
    labels = labels_of(adapted, inputs)
    batch = {"input_ids": inputs, "labels": labels}
    if not adapted.contract.takes_tokens or inputs.shape[1] < ROWS:
        return batch
    length = inputs.shape[1]
    kept = torch.tensor([length - row * length // (2 * ROWS) for row in range(ROWS)], device=inputs.device)
    real = torch.arange(length, device=inputs.device) < kept[:, None]
    if labels.shape == inputs.shape:
        batch["labels"] = labels.masked_fill(~real, IGNORED_LABEL)
    if adapted.contract.mask_name is not None:
        batch["attention_mask"] = real.long()
    return batch


def _micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    """The rows in `parts` equal portions."""
    for rows in torch.arange(ROWS).chunk(parts):
        yield {name: value[rows.to(value.device)] for name, value in batch.items()}


def _loss(adapted: AdaptedModel, batch: Batch) -> torch.Tensor:
    """Mean over the labels of one micro-batch, in nats.

    Raises:
        CheckError: the model raised, or gave no loss.
    """
    try:
        loss = adapted.on_batch(batch).loss
    except Exception as error:
        shape = tuple(batch["input_ids"].shape)
        raise CheckError(
            f"{adapted.name} raised {type(error).__name__} on a padded batch of shape {shape}: {error}"
        ) from error
    if loss is None:
        raise CheckError(f"{adapted.name} gave no loss although labels were passed.")
    return loss


# ---- the comparison --------------------------------------------------------------------------------------------------
def _difference(adapted: AdaptedModel, batch: Batch, parts: int) -> tuple[float, str]:
    """Norm of (gradient of the window at once less that of its micro-batches), relative to the former; and the worst parameter.

    The micro-batches run with a negative sign into the same gradients, so that no second set of them is kept. The relative
    difference is NaN where a gradient is not finite, and where the window's is zero.
    """
    adapted.zero_grad(set_to_none=True)
    shift = adapted.contract.shift if batch["labels"].dim() > 1 else 0
    window = int(counted(batch["labels"], shift))
    with torch.enable_grad():
        _loss(adapted, batch).backward()
        whole = _norms(adapted)
        for part in _micro_batches(batch, parts):
            share = int(counted(part["labels"], shift)) / window
            (-share * _loss(adapted, part)).backward()
    total, rest = _length(whole), _norms(adapted)
    if total == 0 or not math.isfinite(total):
        return math.nan, ""
    return _length(rest) / total, max(rest, key=rest.__getitem__)


def _norms(adapted: AdaptedModel) -> dict[str, float]:
    """Norm of each parameter's gradient, by its name."""
    gradients = {name: p.grad for name, p in adapted.model.named_parameters() if p.grad is not None}
    return {name: float(torch.linalg.vector_norm(g.to_dense() if g.is_sparse else g)) for name, g in gradients.items()}


def _length(norms: dict[str, float]) -> float:
    """Norm of all gradients together."""
    return math.sqrt(sum(norm**2 for norm in norms.values()))


def _largest(gaps: dict[int, tuple[float, str]]) -> float:
    return max(gap for gap, _ in gaps.values())


def _tolerance(adapted: AdaptedModel) -> float:
    """By the coarsest type among the weights."""
    narrow = any(p.is_floating_point() and p.element_size() < 4 for p in adapted.parameters())
    return COARSE if narrow else TOLERANCE


def _prepare(adapted: AdaptedModel) -> None:
    """Eval mode without auxiliary losses; recurrent layers without dropout in train mode, for cuDNN gives no gradients in eval."""
    adapted.eval()
    adapted.contract = dataclasses.replace(adapted.contract, auxiliary=())
    for module in adapted.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
            module.train()


# ---- the verdict -----------------------------------------------------------------------------------------------------
def _measured(adapted: AdaptedModel, gaps: dict[int, tuple[float, str]]) -> dict[str, Any]:
    rows = [
        {"micro-batches": parts, "relative difference": gap, "most in": name} for parts, (gap, name) in gaps.items()
    ]
    return {"relative_difference": _largest(gaps), "tolerance": _tolerance(adapted), TABLE: rows}


def _told(adapted: AdaptedModel, gaps: dict[int, tuple[float, str]]) -> str:
    """The certificate."""
    return (
        f"{' and '.join(map(str, SPLITS))} micro-batches of unequal rows give the gradient of the window at once (relative "
        f"difference {_largest(gaps):.0e}, tolerance {_tolerance(adapted):.0e})."
    )


def _batch_norms(adapted: AdaptedModel) -> list[str]:
    return [name for name, module in adapted.model.named_modules() if isinstance(module, _BatchNorm)]


def _statistics_of_the_batch(adapted: AdaptedModel) -> list[Fault]:
    """BatchNorm between the layers of a model of text."""
    norms = _batch_norms(adapted)
    if not norms:
        return []
    return [
        Fault(
            "warn",
            f"In training, BatchNorm ({listed(norms)}) takes its statistics from each micro-batch, so accumulation gives another gradient.",
            f"{where(adapted, norms[0])} normalises over the rows of a batch: rows and their padding see each other.",
            f"Replace {norms[0]} by nn.LayerNorm over the width, or train without accumulation.",
        )
    ]


def _disagreement(adapted: AdaptedModel, batch: Batch, gaps: dict[int, tuple[float, str]]) -> list[Fault]:
    """The fault where gradients differ by more than rounding."""
    parts = max(gaps, key=lambda k: gaps[k][0])
    gap, parameter = gaps[parts]
    if gap <= _tolerance(adapted):
        return []
    finding = (
        f"{parts} micro-batches give another gradient than the window at once (relative difference {gap:.1e}, tolerance "
        f"{_tolerance(adapted):.0e}), most in {parameter}."
    )
    again, _ = _difference(adapted, batch, 1)
    if not again <= _tolerance(adapted):
        return [
            Fault(
                "fail",
                finding,
                f"The same window gives another gradient the second time (relative difference {again:.1e}): {adapted.name} keeps "
                "something from one call to the next, or draws random numbers in eval mode.",
                "Compute forward from its arguments alone; register what must stay as a buffer, and do not change it in forward.",
            )
        ]
    if _agrees_in_float64(adapted, batch, parts):
        return [
            Fault(
                "warn",
                finding,
                f"Rounding: in float64 they agree. Somewhere {adapted.name} amplifies the last digits, such as by adding a large "
                "number and taking it off again.",
                "See numerical stability; keep values near 1, and normalise before the head.",
            )
        ]
    return [
        Fault(
            "fail",
            finding,
            f"In forward of {adapted.name} the rows of a batch meet: a mean, softmax or normalisation over axis 0, a view that "
            "mixes batch and time, or experts with a shared capacity. See the check of row independence.",
            "Keep every operation within its row: reduce over the last axis, and transpose before a view that splits heads.",
        )
    ]


def _agrees_in_float64(adapted: AdaptedModel, batch: Batch, parts: int) -> bool:
    """Whether the difference is one of rounding. Changes the type of the weights."""
    adapted.double()
    try:
        with MatchingMasks():
            return _difference(adapted, batch, parts)[0] <= 1e-4 * TOLERANCE
    except CheckError:  # float32 is written into forward, so nothing is known
        return False
