"""Do the weights start at a usable scale? The first loss against ln V, and each layer against its kind.

Biases and normalisation layers are left out on purpose: zeros and ones are how PyTorch and Hugging Face start them.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import is_tied, listed, output_head, role, where
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, loss_of, run_model

NAME = "initialisation"
BATCH, LENGTH = 8, 32
EXCESS = 1.0
"""Nats above ln V from which on a start counts as spoilt; training's initialisation goes by it too. Logits of standard deviation s give ln V + s²/2: nn.Linear's default has s = 0.58, std 0.02 reaches
s = 1.28 at width 4096."""
DEFICIT = 0.5
"""Nats below ln V on uniform random ids, where nobody can be better than ln V by more than the sampling error."""
USUAL_STD = 0.02
"""Standard deviation of GPT-2's initial weights (Radford et al. 2019, released code); training re-draws with it too."""
GAINS = (1e-4, 10.0)
"""Usable range of std · sqrt(inputs): Kaiming and Xavier give 0.4 to 1.4, std 0.02 at width 8 with 1/sqrt(2L) gives 0.01."""
SIBLING_RATIO = 50.0
"""Largest ratio of standard deviations between siblings of a stack; depth-scaled schemes stay within sqrt(2L) < 20."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Measure the loss on uniform random ids (no model can beat ln V there) and the scale of every matrix."""
    adapted.eval()
    rows = [_scale(name, p) for name, p in adapted.model.named_parameters() if p.dim() >= 2 and p.numel() > 1]
    classes = adapted.contract.output_size or sampler.vocabulary
    expected, first_loss = math.log(classes), _first_loss(adapted, sampler)
    details: dict[str, Any] = {TABLE: rows, "first_loss": first_loss, "ln_vocabulary": expected}
    faults = [
        *_broken(rows),
        *_loss_faults(adapted, sampler, first_loss, expected, details),
        *_scale_faults(adapted, rows),
    ]
    fine = f"First loss {first_loss:.2f}, ln V = {expected:.2f}; {len(rows)} matrices, std {_span(rows)}."
    return judged(NAME, faults, fine, details)


def default_embeddings(adapted: AdaptedModel) -> dict[str, nn.Embedding]:
    """Embeddings whose weights look like PyTorch's draws from N(0, 1), by parameter name; a shared matrix is listed once."""
    found: dict[str, nn.Embedding] = {}
    seen: set[int] = set()
    for name, module in adapted.model.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) not in seen and _looks_default(module):
            seen.add(id(module.weight))
            found[f"{name}.weight"] = module
    return found


def _looks_default(module: nn.Embedding) -> bool:
    weight = module.weight.detach().float()
    if module.padding_idx is not None:  # PyTorch sets this row to zero
        weight = torch.cat([weight[: module.padding_idx], weight[module.padding_idx + 1 :]])
    count = weight.numel()
    if count < 2:
        return False
    margin = 4 / math.sqrt(count)  # four standard errors of the mean; those of the deviation are smaller
    return abs(weight.mean().item()) < margin and abs(weight.std().item() - 1) < margin


def _scale(name: str, parameter: nn.Parameter) -> dict[str, Any]:
    values = parameter.detach().float()
    inputs = values[0].numel()
    deviation = float(values.std())
    return {
        "parameter": name,
        "shape": str(tuple(values.shape)),
        "std": deviation,
        "std · sqrt(inputs)": deviation * math.sqrt(inputs),
        "largest": float(values.abs().max()),
    }


def _span(rows: list[dict[str, Any]]) -> str:
    deviations = [row["std"] for row in rows]
    return f"{min(deviations):.2g} to {max(deviations):.2g}" if deviations else "none"


def _first_loss(adapted: AdaptedModel, sampler: Sampler) -> float:
    with torch.no_grad():
        return float(loss_of(adapted, sampler.inputs(BATCH, sampler.length(LENGTH))))


def _broken(rows: list[dict[str, Any]]) -> list[Fault]:
    faults = []
    names = [row["parameter"] for row in rows if not math.isfinite(row["largest"])]
    if names:
        faults.append(
            Fault(
                "fail",
                f"Weights hold NaN or infinities: {listed(names)}.",
                "They were created or loaded so.",
                f"Initialise {names[0]} again.",
            )
        )
    equal = [row["parameter"] for row in rows if row["largest"] > 0 and row["std"] < 1e-7 * row["largest"]]
    if equal:
        faults.append(
            Fault(
                "fail",
                f"All entries are equal in {listed(equal)}.",
                "Units that start equal get equal gradients and stay equal: the layer works as one unit.",
                f"Draw {equal[0]} at random: nn.init.normal_({equal[0]}, std={USUAL_STD}).",
            )
        )
    return faults


def _loss_faults(
    adapted: AdaptedModel, sampler: Sampler, loss: float, expected: float, details: dict[str, Any]
) -> list[Fault]:
    if not math.isfinite(loss):
        return [
            Fault(
                "fail",
                f"The first loss is {loss}; expected about ln V = {expected:.2f}.",
                "The logits are not finite, see the check of numerical stability.",
                "Mend the module that the check of numerical stability names.",
            )
        ]
    if loss < expected - DEFICIT:
        return [
            Fault(
                "warn",
                f"The first loss is {loss:.2f}, below ln V = {expected:.2f}, on random ids that nobody can predict.",
                "The model sees what it must predict: the loss compares a position with its own token, or attention sees the future.",
                "Shift the labels exactly once, and mask the attention; see the check of causality.",
            )
        ]
    return [] if loss <= expected + EXCESS else [_high_loss(adapted, sampler, loss, expected, details)]


def _high_loss(adapted: AdaptedModel, sampler: Sampler, loss: float, expected: float, details: dict[str, Any]) -> Fault:
    with torch.no_grad():
        spread = float(run_model(adapted, sampler.inputs(2, sampler.length(LENGTH))).logits.float().std())
    finding = (
        f"The first loss is {loss:.2f}; a fresh model starts near ln V = {expected:.2f}. Logits have std {spread:.2g}."
    )
    head = output_head(adapted)
    if head is None:
        return Fault("warn", finding, "The logits are too large.", "Scale down what makes the logits.")
    name, weight = head
    deviation = float(weight.detach().float().std())
    redrawn = any(embedding.weight is weight for embedding in default_embeddings(adapted).values())
    module, mended = name.rpartition(".")[0], _loss_with_small_head(adapted, sampler, weight)
    details[f"first_loss_with_std_{USUAL_STD}"] = mended
    if mended > expected + EXCESS:
        return Fault(
            "warn",
            f"{finding} A head of std {USUAL_STD} would give {mended:.2f}.",
            f"The values that reach {where(adapted, module)} are too large, or the weights were trained on something else than random ids.",
            "For a trained model nothing is to be done. Else add a LayerNorm before the head.",
        )
    if is_tied(adapted):
        width = weight.shape[1]
        cause = f"The tied token embedding {where(adapted, module)} has std {deviation:.2f}, so the logits get std ≈ {deviation:.2g}·sqrt({width}) = {deviation * math.sqrt(width):.1f}."
    else:
        cause = f"The output head {where(adapted, module)} has std {deviation:.2g}; the logits get std {spread:.2g}."
    fix = f"Initialise {name} with std {USUAL_STD}"
    fix += (
        "; training does that by itself: TrainingConfig(initialisation='auto'), the default."
        if redrawn
        else f": nn.init.normal_({name}, std={USUAL_STD})."
    )
    return Fault("warn", finding, cause, f"{fix} Tried here: the first loss becomes {mended:.2f}.")


def _loss_with_small_head(adapted: AdaptedModel, sampler: Sampler, weight: nn.Parameter) -> float:
    """The first loss after scaling the head to the usual std; the weights are given back at the end of the check."""
    with torch.no_grad():
        weight.mul_(USUAL_STD / weight.float().std().clamp(min=1e-30))
    return _first_loss(adapted, sampler)


def _scale_faults(adapted: AdaptedModel, rows: list[dict[str, Any]]) -> list[Fault]:
    embeddings = {
        f"{name}.weight" for name, module in adapted.model.named_modules() if isinstance(module, nn.Embedding)
    }
    layers = [
        row for row in rows if row["parameter"] not in embeddings and row["std"] > 0 and math.isfinite(row["std"])
    ]
    strange = {row["parameter"]: row for row in layers if not GAINS[0] <= row["std · sqrt(inputs)"] <= GAINS[1]}
    stacks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in layers:
        stacks.setdefault((role(row["parameter"]), row["shape"]), []).append(row)
    for stack in stacks.values():
        middle = statistics.median(row["std"] for row in stack)
        odd = [row for row in stack if max(row["std"] / middle, middle / row["std"]) > SIBLING_RATIO]
        strange.update({row["parameter"]: row for row in odd})
    if not strange:
        return []
    name, row = next(iter(strange.items()))
    return [
        Fault(
            "warn",
            f"Unusual scale in {len(strange)} of {len(rows)} matrices: {listed(list(strange))}.",
            f"{where(adapted, name.rpartition('.')[0])} has std {row['std']:.2g} (times sqrt(inputs): {row['std · sqrt(inputs)']:.2g}; "
            f"usual {GAINS[0]:g} to {GAINS[1]:g}, and like its siblings).",
            f"Initialise it with std {USUAL_STD}: nn.init.normal_({name}, std={USUAL_STD}).",
        )
    ]
