"""Do the weights start at a usable scale? The first loss against ln V, and each layer against its kind.

Biases and normalisation layers are left out on purpose: zeros and ones are how PyTorch and Hugging Face start them.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import nn

from utils.adapters.attention_maps import attention_maps
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import is_tied, listed, output_head, role, token_embedding, where
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

SHARP = 1.5
"""Nats, the largest usual std of attention scores at the start. nn.Linear's default after a LayerNorm gives 1/3 at any width,
Xavier's 1/2; without the division by sqrt(d) they give sqrt(d)/3: 2.7 at d = 64 (Vaswani et al. 2017, section 3.2.1)."""
FEWEST_KEYS = 8
"""Queries that see fewer tokens tell nothing of the spread."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Measure the loss on uniform random ids (no model can beat ln V there) and the scale of every matrix."""
    adapted.eval()
    rows = [_scale(name, p) for name, p in adapted.model.named_parameters() if _is_matrix(p)]
    classes = adapted.contract.output_size or sampler.vocabulary
    expected, first_loss = math.log(classes), _first_loss(adapted, sampler)
    details: dict[str, Any] = {TABLE: rows, "first_loss": first_loss, "ln_vocabulary": expected}
    loss_faults = _loss_faults(adapted, sampler, first_loss, expected, details)
    faults = [*_broken(rows), *loss_faults, *_scale_faults(adapted, rows), *_untied(adapted)]
    if not loss_faults:  # a trained model attends sharply and is surprised by random ids; only a fresh one is judged
        faults += _sharp_attention(adapted, sampler, details)
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


def _is_matrix(parameter: nn.Parameter) -> bool:
    """At least two axes with more than one entry; a scale per head, kept as (heads, 1, 1), is a vector."""
    return sum(size > 1 for size in parameter.shape) >= 2


def _span(rows: list[dict[str, Any]]) -> str:
    deviations = [row["std"] for row in rows]
    return f"{min(deviations):.2g} to {max(deviations):.2g}" if deviations else "none"


def _first_loss(adapted: AdaptedModel, sampler: Sampler) -> float:
    """The loss on random ids, in nats. Where a token's label is the token itself, other ids are the labels.

    A masked model would read its answers otherwise: nothing is masked here.
    """
    inputs = sampler.inputs(BATCH, sampler.length(LENGTH))
    with torch.no_grad():
        if adapted.contract.task != "masked" or not adapted.contract.scores_tokens:
            return float(loss_of(adapted, inputs))
        loss = run_model(adapted, inputs, labels=sampler.inputs(*inputs.shape, seed=1)).loss
        return float(loss_of(adapted, inputs) if loss is None else loss)


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


def _untied(adapted: AdaptedModel) -> list[Fault]:
    """The config says that head and token embedding are one matrix, and they are two of one shape."""
    head, embedding = output_head(adapted), token_embedding(adapted)
    said = adapted.config.raw.get("tie_word_embeddings") is True
    if not said or head is None or embedding is None or is_tied(adapted) or head[1].shape != embedding[1].weight.shape:
        return []
    return [
        Fault(
            "warn",
            f"The config says tie_word_embeddings, but {head[0]} and {embedding[0]}.weight are two matrices.",
            f"{where(adapted, head[0].rpartition('.')[0])} keeps a weight of its own: {head[1].numel():,} parameters more than said.",
            f"In __init__, after both are made: self.{head[0]} = self.{embedding[0]}.weight; or set tie_word_embeddings to false.",
        )
    ]


def _sharp_attention(adapted: AdaptedModel, sampler: Sampler, details: dict[str, Any]) -> list[Fault]:
    """Attention that starts far from even, by what its scores owe to the tokens."""
    length = sampler.length(LENGTH)
    if not adapted.contract.takes_tokens or length < 2 * FEWEST_KEYS:
        return []
    spreads = {name: score_spread(w) for name, w in attention_maps(adapted, sampler.inputs(BATCH, length)).items()}
    details["attention_score_std"] = max(spreads.values(), default=0.0)
    sharp = [name for name, spread in spreads.items() if spread > SHARP]
    if not sharp:
        return []
    return [
        Fault(
            "warn",
            f"The attention of {listed(sharp)} starts sharp: its scores have std {spreads[sharp[0]]:.1f} (usual: below {SHARP:g}).",
            f"{where(adapted, sharp[0])} does not divide the scores by the root of the head's width, or its query and key weights "
            "are too large: the softmax starts near one-hot, where its gradient vanishes.",
            "Divide the scores by math.sqrt(query.shape[-1]) before the softmax.",
        )
    ]


def score_spread(weights: torch.Tensor) -> float:
    """Standard deviation, in nats, of the attention scores that is owed to the tokens, from the weights alone.

    What is equal in every row of the batch (masks, position biases) drops out, as does the constant of each softmax.

    Args:
        weights: (B, heads, queries, keys), softmax over the last axis, each row of the batch another text.
    """
    seen = (weights > 0).all(0)  # (heads, queries, keys)
    counted = seen & (seen.sum(-1, keepdim=True) >= FEWEST_KEYS)
    if weights.shape[0] < 2 or not counted.any():
        return 0.0
    scores = weights.float().clamp(min=1e-30).log()
    share = counted / counted.sum(-1, keepdim=True).clamp(min=1)
    scores = scores - (scores * share).sum(-1, keepdim=True)
    scores = scores - scores.mean(0)
    rows = weights.shape[0]
    return float(scores[:, counted].square().mean().sqrt()) * math.sqrt(rows / (rows - 1))


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
