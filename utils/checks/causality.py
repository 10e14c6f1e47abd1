"""Does the model see the future? Asks `utils.adapters.causality` and puts the answer into words."""

from __future__ import annotations

import torch

from utils.adapters.causality import sees_future
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.report import CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "causality"
LENGTH = 8


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Warn where a later token moves earlier logits: next-token training would let the model read its answers."""
    if adapted.contract.task != "lm":
        return CheckResult(
            NAME, "skipped", f"The model's task is {adapted.contract.task}: there is no next token to hide."
        )
    adapted.eval()
    with torch.no_grad():
        if not torch.isfinite(run_model(adapted, sampler.ids(1, sampler.length(LENGTH))).logits).all():
            return CheckResult(NAME, "skipped", "The logits are not finite, so they cannot be compared.")
    report = sees_future(adapted)
    details = {"causal": report.causal, "evidence": report.evidence}
    if report.causal:
        return CheckResult(
            NAME, "passed", f"No later token moves an earlier logit: {report.evidence}.", details=details
        )
    return CheckResult(
        NAME,
        "warning",
        f"The model sees the future: {report.evidence}.",
        cause=f"The attention of {adapted.name} has no causal mask, so position t reads the token that it is asked to predict.",
        fix="Nothing for training: train() makes the attention causal by itself (objective='auto') and proves it. To have it "
        "in the model itself, pass a causal mask to the attention in forward.",
        details=details,
    )
