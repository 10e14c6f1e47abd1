"""Does the model see the future? Asks `utils.adapters.causality` and puts the answer into words."""

from __future__ import annotations

from typing import Any

import torch

from utils.adapters.causality import CausalityReport, make_causal, sees_future
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.passage import relative_gap
from utils.checks.report import CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model
from utils.errors import CallContractError

NAME = "causality"
LENGTH = 8
CLEAR_LEAK = 1e-3
"""Relative change of earlier logits that is no rounding, whatever the type of the weights."""


@model_check(NAME)
def first_look(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """One short text with two endings: a leak that this shows needs no longer question, and none is proven away by it."""
    length = sampler.length(LENGTH)
    if adapted.contract.task != "lm" or length < 2 or _both_ways_by_design(adapted):
        return CheckResult(NAME, "pass", "Nothing to ask in a moment.")
    adapted.eval()
    text, other = sampler.ids(1, length), sampler.ids(1, length, seed=1)
    cut = length // 2
    with torch.no_grad():
        pair = (text, torch.cat([text[:, :cut], other[:, cut:]], 1))
        one, two = (run_model(adapted, ids).logits[:, :cut].float() for ids in pair)
    moved = relative_gap(one, two)
    if moved > CLEAR_LEAK:
        return CheckResult(NAME, "warn", f"Another ending moves earlier logits by {moved:.3g} (relative).")
    return CheckResult(NAME, "pass", f"Another ending moves earlier logits by {moved:.0e} (relative) at most.")


@model_check(NAME, screen=first_look)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Warn where a later token moves earlier logits: next-token training would let the model read its answers.

    A model for hidden tokens reads in both directions by design; of an encoder-decoder the decoder is asked.
    """
    if adapted.contract.task not in ("lm", "masked", "seq2seq"):
        return CheckResult(
            NAME, "skip", f"The model's task is {adapted.contract.task}: there is no next token to hide."
        )
    if reason := _both_ways_by_design(adapted):
        words = f"The model reads in both directions by design ({reason}): it is trained on hidden tokens, not on the next one."
        return CheckResult(NAME, "pass", words)
    adapted.eval()
    with torch.no_grad():
        if not torch.isfinite(run_model(adapted, sampler.ids(1, sampler.length(LENGTH))).logits).all():
            return CheckResult(NAME, "skip", "The logits are not finite, so they cannot be compared.")
    report = sees_future(adapted)
    details = {"causal": report.causal, "evidence": report.evidence}
    if not report.causal:
        return _leaks(adapted, report, details)
    if report.in_training:
        return CheckResult(
            NAME,
            "warn",
            f"The model sees the future in training mode: {report.in_training}.",
            cause="Something behaves differently in training: statistics over the batch (BatchNorm), the capacity of experts, "
            "or a branch on self.training.",
            fix="Replace BatchNorm by LayerNorm over the width, or make that part causal: the training loss reads its answers, "
            "while validation and generation cannot.",
            measured=details,
        )
    return CheckResult(NAME, "pass", f"No later token moves an earlier logit: {report.evidence}.", measured=details)


def _both_ways_by_design(adapted: AdaptedModel) -> str:
    """What says that the model scores hidden tokens rather than the next one; empty where nothing does."""
    if adapted.contract.task == "masked":
        return adapted.contract.reasons.get("task") or "its task is masked"
    kind = type(adapted.model).__name__
    if kind.endswith("ForMaskedLM") and not adapted.config.raw.get("is_decoder"):
        return f"it is a {kind}, and no decoder"
    return ""


def _leaks(adapted: AdaptedModel, report: CausalityReport, details: dict[str, Any]) -> CheckResult:
    """What is said of a model that sees the future: whether its attention can be made causal, and how."""
    message = f"The model sees the future: {report.evidence}."
    try:
        reason = make_causal(adapted).contract.reasons["causality"]
    except CallContractError as error:
        return CheckResult(
            NAME,
            "warn",
            message,
            cause=f"Something in {adapted.name} mixes positions in both directions, and it cannot be made causal from outside. "
            f"{error}",
            fix=_mend(adapted.contract.task),
            measured=details,
        )
    return CheckResult(
        NAME,
        "warn",
        message,
        cause=f"The attention of {adapted.name} has no causal mask, so position t reads the token that it is asked to predict.",
        fix=f"Nothing for training: train() uses a version {reason}, which was proven to be causal. To have it in the model "
        "itself, pass a causal mask to the attention in forward.",
        measured={**details, "made_causal": reason},
    )


def _mend(task: str) -> str:
    """What is left to do for a model that cannot be made causal from outside."""
    if task == "seq2seq":
        return (
            "Pass a causal mask to the decoder's self-attention: its training would only teach it to copy its answers."
        )
    return (
        "train() refuses it, since next-token prediction would only teach it to copy. Make forward causal, or train it with a "
        "masked objective."
    )
