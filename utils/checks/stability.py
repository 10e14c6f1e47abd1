"""Are the numbers sound? NaN and infinities, fully masked rows, extreme and constant logits, mixed precision.

Whether the same input gives the same logits is for `determinism`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import output_head, wake_zero_matrices, where
from utils.checks.masking import takes_padding_before
from utils.checks.passage import SAME, Passage, passage, relative_gap
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model
from utils.errors import CheckError

NAME = "numerical stability"
BATCH, LENGTH, MASKED_LENGTH = 2, 32, 8
EXTREME_LOGIT = 1e3
"""Beyond this the softmax is one-hot to the last bit, and float16 (largest number 65504) has no room to multiply."""
PRECISION_GAP = 0.1
"""Largest relative difference between float32 and mixed precision. bfloat16 rounds to 2**-8 = 0.4% per operation; our own
measurement: 24 layers and 14 Hugging Face families stay below 1%."""
PRECISION_WORK = 1e9
"""Multiplications (parameters × tokens) of a pass under autocast. Processors without narrow arithmetic emulate it: our own
measurement on 2 busy cores is 23 s for 64 tokens of GPT-2 124M. This bound leaves it 8."""
NARROW = {torch.float16, torch.bfloat16}
NO_KERNEL = ("could not create a primitive", "not implemented for 'Half'", "not implemented for 'BFloat16'")
"""What torch says where a processor has no narrow arithmetic for an operation (an LSTM, for one)."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Run random ids in eval mode, others, some behind a mask, and a few under autocast; nothing is trained."""
    adapted.eval()
    length = sampler.length(LENGTH)
    ids = sampler.inputs(BATCH, length)
    _collect_statistics(adapted, ids)
    first = passage(adapted, ids)
    logits = first.logits.float()
    largest = float(logits.abs().max())
    details: dict[str, Any] = {"max_abs_logit": largest, "first_module_not_finite": first.first_bad, TABLE: []}
    if not math.isfinite(largest):
        return _not_finite(adapted, first, details)
    other = passage(adapted, sampler.inputs(BATCH, length, seed=1))
    gaps, narrow = _mixed_precision(adapted, _few(adapted, sampler))
    faults = [
        *_hidden_nan(adapted, first),
        *_extreme(adapted, largest),
        *_narrow_logits(adapted, first.logits),
        *_masked_rows(adapted, sampler),
        *_constant(adapted, sampler, first, other),  # may wake zero matrices, so nothing is compared after it
        *narrow,
    ]
    details[TABLE] = [{"precision": name, "relative difference": gap} for name, gap in gaps.items()]
    agreement = ", ".join(f"{name} within {gap:.1%} of float32" for name, gap in gaps.items())
    agreement = agreement or _not_compared(adapted)
    return judged(NAME, faults, f"All values finite, largest logit {largest:.3g}; {agreement}.", details)


def _not_compared(adapted: AdaptedModel) -> str:
    """Why nothing was compared with float32."""
    narrow = [str(kind).removeprefix("torch.") for kind in _weight_types(adapted.model) & NARROW]
    if narrow:
        return f"mixed precision was not compared, since weights are {' and '.join(sorted(narrow))}"
    return "mixed precision does not run on this device"


def _not_finite(adapted: AdaptedModel, first: Passage, details: dict[str, Any]) -> CheckResult:
    share = float((~torch.isfinite(first.logits)).double().mean())
    kind = "NaN" if bool(torch.isnan(first.logits).any()) else "infinite"
    broken = [name for name, p in adapted.model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        cause, fix = (
            f"The weight {broken[0]} itself holds NaN or infinities.",
            f"Initialise {broken[0]} again, or load another checkpoint.",
        )
    elif first.first_bad is not None:
        cause = f"The first module whose output is not finite is {where(adapted, first.first_bad)}."
        fix = f"Look at what goes into {first.first_bad}: division by zero, a logarithm or root of 0, a softmax over a fully masked row."
    else:
        cause = (
            f"Every submodule of {adapted.name} returns finite values, so it happens in forward after the last module."
        )
        fix = "Look at the statements of forward between the last module and the returned logits."
    finding = f"{share:.0%} of the logits are {'not finite (' + kind + ')'}."
    return CheckResult(NAME, "fail", finding, cause, fix, details)


def _hidden_nan(adapted: AdaptedModel, first: Passage) -> list[Fault]:
    if first.first_bad is None:
        return []
    return [
        Fault(
            "warn",
            f"{first.first_bad} returns NaN or infinities, although the logits are finite.",
            f"Something after {where(adapted, first.first_bad)} discards them; their gradients may still be NaN.",
            f"Make the output of {first.first_bad} finite: mask before the softmax, never with whole rows of -inf.",
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
    weights = _weight_types(adapted.model)
    if logits.dtype not in NARROW or not weights or weights & NARROW:
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


def _weight_types(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}


def _constant(adapted: AdaptedModel, sampler: Sampler, first: Passage, other: Passage) -> list[Fault]:
    """A model whose logits do not change with its input. A head that starts at zero is woken first."""
    if sampler.vocabulary == 1 or relative_gap(first.logits, other.logits) > SAME:
        return []
    if wake_zero_matrices(adapted.model):
        length = sampler.length(LENGTH)
        pair = [passage(adapted, sampler.inputs(BATCH, length, seed=seed)).logits for seed in (0, 1)]
        if relative_gap(*pair) > SAME:
            return []
    what = "token ids" if adapted.contract.takes_tokens else "pixels"
    return [
        Fault(
            "fail",
            "Different inputs give the same logits: the output ignores its input.",
            f"In forward of {adapted.name} the {what} do not reach the logits: a constant is returned, or everything that "
            f"depends on the {what} is multiplied by zero or overwritten.",
            f"Follow the {what} from the first layer to the returned logits; each step must read the value of the step before it.",
        )
    ]


def _collect_statistics(adapted: AdaptedModel, inputs: torch.Tensor) -> None:
    """Give batch normalisations that no batch has reached the statistics of these inputs. Call within `preserved`.

    Until then they scale nothing in eval mode, and the signal of many layers dies out by nobody's fault: our own measurement of
    a fresh MobileViT (5 M) is a largest logit of 2e-40.
    """
    fresh = {
        module: module.momentum
        for module in adapted.model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
        and not module.running_mean.any()
        and (module.running_var == 1).all()
    }
    if not fresh:
        return
    for module in fresh:
        module.train()
        module.momentum = 1.0  # this batch's own statistics
    with torch.no_grad():
        run_model(adapted, inputs)
    for module, momentum in fresh.items():
        module.eval()
        module.momentum = momentum


def _masked_rows(adapted: AdaptedModel, sampler: Sampler) -> list[Fault]:
    """NaN where a position may see nothing: hidden tokens at the beginning of a text, behind a causal mask."""
    length = sampler.length(MASKED_LENGTH)
    if not adapted.contract.takes_tokens or not takes_padding_before(adapted.contract) or length < 2:
        return []
    keep = torch.ones(2, length, dtype=torch.long, device=sampler.device)
    keep[1, : length // 2] = 0
    found = passage(adapted, sampler.inputs(2, length), attention_mask=keep)
    finite = torch.isfinite(found.logits).flatten(2).all(-1) if found.logits.dim() > 2 else torch.isfinite(found.logits)
    if finite.all():
        return []
    each_token = finite.shape == keep.shape and adapted.contract.decoder_name is None
    spread = not each_token or not finite[keep.bool()].all()
    place = f"The first module is {where(adapted, found.first_bad)}." if found.first_bad else ""
    return [
        Fault(
            "fail" if spread else "warn",
            f"With the first {length // 2} tokens hidden, {'' if spread else 'hidden positions of '}the logits are NaN or infinite.",
            f"A position that may see nothing has a softmax over a row of -inf alone, which is 0 / 0. {place}".strip(),
            "Mask with a large negative number (torch.finfo(x.dtype).min) in place of -inf, or let each position see itself.",
        )
    ]


def _few(adapted: AdaptedModel, sampler: Sampler) -> torch.Tensor:
    """As many tokens of one row as a pass under autocast may cost."""
    if adapted.device.type != "cpu":
        return sampler.inputs(BATCH, sampler.length(LENGTH))
    return sampler.inputs(
        1, sampler.length(int(min(LENGTH, max(2, PRECISION_WORK // max(1, adapted.num_parameters())))))
    )


def _mixed_precision(adapted: AdaptedModel, ids: torch.Tensor) -> tuple[dict[str, float], list[Fault]]:
    """Relative difference (2-norm) of the logits under autocast, and what is wrong with it.

    Nothing for weights of 16 bits: autocast keeps weights of 32, and nobody calls it over narrow ones (PyTorch's own
    normalisations refuse bfloat16 weights under float16 on a CPU).
    """
    if _weight_types(adapted.model) & NARROW:
        return {}, []
    with torch.no_grad():
        reference = run_model(adapted, ids).logits.float()
    gaps: dict[str, float] = {}
    faults: list[Fault] = []
    for name, kind in {"bfloat16": torch.bfloat16, "float16": torch.float16}.items():
        try:
            with torch.no_grad(), torch.autocast(ids.device.type, dtype=kind):
                logits = run_model(adapted, ids).logits.float()
        except CheckError as error:
            if any(words in f"{error} {error.__cause__}" for words in NO_KERNEL):  # the message may be cut
                continue  # this processor's gap, not the model's
            faults.append(_precision_fault(name, f"does not run: {error}", _why_not(str(error))))
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


def _why_not(message: str) -> str:
    """Why a pass under autocast raises."""
    if "without overflow" in message:
        return "A constant of one type's range (torch.finfo(x.dtype).min) is written into a tensor of a narrower type."
    return "Operands of two types meet in forward."


def _precision_fault(precision: str, finding: str, cause: str) -> Fault:
    return Fault(
        "warn",
        f"Under autocast {precision} {finding}",
        cause,
        "Let forward follow the type of its inputs (x.to(other.dtype), no hard-coded .float() or dtype=), or train with precision='32-true'.",
    )
