"""Where does each head look? Entropy, sparsity, distance, named kinds, and heads that do the same. Informs, never fails.

The input is a random sequence that is repeated once: only there an induction head, which looks at what followed the last
time that a token was seen, can be told from others (Olsson et al. 2022, "In-context learning and induction heads").
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import torch

from utils.adapters.attention_maps import attention_maps
from utils.adapters.contract import shifted_right
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler

NAME = "attention patterns"
BATCH, LENGTH = 4, 48
KIND_SHARE = 0.5
"""A head is named after the place that gets more than this share of its attention: more than all other places together."""
COLLAPSED, UNIFORM = 0.05, 0.95
"""Entropy, relative to that of equal weights, up to and from which a head is collapsed or uniform. Zhai et al. 2023
("Stabilizing Transformer training by preventing attention entropy collapse") see training diverge as it nears 0; our own
measurement: the heads of fresh Hugging Face models lie above 0.99, those of T5, which does not scale its scores, at 0.8."""
SPARSE = 0.1
"""A weight counts as nothing when it is below this share of an equal weight."""
SHORTEST_PERIOD = 4
"""With a shorter period the place that induction looks at is close to the previous token."""
SAME_HEADS = 0.01
"""Jensen-Shannon divergence in bits (0 to 1) below which two heads of a layer do the same."""
LARGEST_MAPS = 16
"""Layers whose maps are kept for the picture, and heads of each."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Look at the attention maps of every head on a repeated random sequence (a random image for a vision model).

    The details hold one row per head. A fresh model attends nearly uniformly, which is no fault.
    """
    adapted.eval()
    inputs, period = _repeated(sampler)
    maps = attention_maps(adapted, inputs, **_decoder_ids(adapted, inputs))
    if not maps:
        return CheckResult(NAME, "skip", f"No attention was found in {adapted.name}: there are no maps to look at.")
    if not all(bool(torch.isfinite(weights).all() and weights.any()) for weights in maps.values()):
        return CheckResult(NAME, "skip", "The attention weights of a layer are not finite, or hide everything.")
    in_order = adapted.contract.takes_tokens
    rows = [row for layer, weights in maps.items() for row in describe(layer, weights, period, in_order)]
    kinds = Counter(row["kind"] for row in rows)
    twins = sum(row["divergence"] is not None and row["divergence"] < SAME_HEADS for row in rows)
    measured = {TABLE: rows, "kinds": dict(kinds), "heads": len(rows), "redundant_heads": twins}
    arrays = _for_the_picture(maps)
    if kinds["collapsed"] == len(rows):
        return CheckResult(
            NAME,
            "warn",
            f"All {len(rows)} heads are collapsed: each position puts all of its attention on one other.",
            "The scores are so large that the softmax is one-hot, and hardly any gradient passes it: missing 1/sqrt(d), or "
            "query and key weights that are too large.",
            "Divide the scores by the square root of the head's width, or normalise queries and keys.",
            measured,
            arrays=arrays,
        )
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    finding = f"{len(rows)} heads in {len(maps)} attention layers: {named}. {twins} have a twin in their layer."
    return CheckResult(NAME, "pass", finding, measured=measured, arrays=arrays)


def describe(
    layer: str, weights: torch.Tensor, period: int | None = None, in_order: bool = True
) -> list[dict[str, Any]]:
    """One row per head of a layer: kind, entropy and sparsity (0 to 1), distance in positions, and the nearest twin.

    Args:
        layer: its name.
        weights: (B, heads, T, keys), each row sums to 1.
        period: after how many tokens the input repeats itself; None where it does not.
        in_order: whether neighbours in the sequence mean something; not so for the patches of an image.

    Example:
        >>> previous = torch.eye(8).roll(-1, 1)[None, None]      # position i looks at i + 1
        >>> describe("layer", previous)[0]["kind"]
        'next token'
    """
    weights = weights.float()
    seen = _seen(weights)  # (T,) numbers of keys that each position may look at
    rows = seen > 1  # where a single key may be seen, its weight is 1 whatever the head does
    if not bool(rows.any()):
        rows = torch.ones_like(rows)
    square = weights.shape[-1] == weights.shape[-2]
    entropy = (_entropy(weights) / seen.clamp(min=2).log())[..., rows].mean((0, 2))  # (heads,)
    idle = (weights < SPARSE / seen[:, None]).sum(-1) - (weights.shape[-1] - seen)  # of the keys that may be seen
    sparsity = (idle.clamp(min=0) / seen)[..., rows].mean((0, 2))
    distance = _distance(weights)[..., rows].mean((0, 2)) if square and in_order else None
    shares = _shares(weights, rows, period if square else None, square, in_order)
    twins = _nearest(weights[..., rows, :])
    found = []
    for head in range(weights.shape[1]):
        kind = _kind({name: float(values[head]) for name, values in shares.items()}, float(entropy[head]))
        row: dict[str, Any] = {"layer": layer, "head": head, "kind": kind, "entropy": float(entropy[head])}
        row |= {"sparsity": float(sparsity[head]), "distance": None if distance is None else float(distance[head])}
        row |= {name: float(values[head]) for name, values in shares.items()}
        found.append(row | {"twin": twins[head][0], "divergence": twins[head][1]})
    return found


def _repeated(sampler: Sampler) -> tuple[torch.Tensor, int | None]:
    """Ids whose second half repeats the first, with the period; pixels, or ids as they come where that is too short."""
    length = sampler.length(LENGTH)
    inputs = sampler.inputs(BATCH, length)
    if sampler.image_shape is not None or length // 2 < SHORTEST_PERIOD:
        return inputs, None
    half = inputs[:, : length // 2]
    return torch.cat([half, half, inputs[:, 2 * half.shape[1] :]], 1), half.shape[1]


def _decoder_ids(adapted: AdaptedModel, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The decoder reads one token less, so that its attention to the encoder is told from that to itself."""
    if adapted.contract.decoder_name is None or inputs.shape[1] < 2:
        return {}
    return {"decoder_input_ids": shifted_right(inputs, adapted.contract.start_id)[:, :-1]}


def _seen(weights: torch.Tensor) -> torch.Tensor:
    """How many keys each position may look at: all up to its own where no weight lies above the diagonal."""
    queries, keys = weights.shape[-2:]
    if queries == keys and float(weights.triu(1).abs().max()) == 0:
        return torch.arange(1, keys + 1, device=weights.device)
    return torch.full((queries,), keys, device=weights.device)


def _entropy(weights: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(weights, weights).sum(-1)  # nats


def _distance(weights: torch.Tensor) -> torch.Tensor:
    places = torch.arange(weights.shape[-1], device=weights.device)
    return (weights * (places[:, None] - places).abs()).sum(-1)


def _shares(
    weights: torch.Tensor, rows: torch.Tensor, period: int | None, square: bool, in_order: bool
) -> dict[str, torch.Tensor]:
    """Share of the attention that goes to each place with a name, (heads,) each; the order decides between equals."""
    shares: dict[str, torch.Tensor] = {}
    if square and in_order and weights.shape[-1] > 2:
        shares["previous token"] = _at_offset(weights, -1, 1)
        if period is not None and period >= SHORTEST_PERIOD:
            shares["induction"] = _at_offset(weights, 1 - period, period)
        shares["next token"] = _at_offset(weights, 1, 0)
    if square:
        shares["own token"] = _at_offset(weights, 0, 1)
    later = rows.clone()
    later[0] = False  # the first position is no sink for itself
    shares["first-token sink"] = weights[..., later, 0].mean((0, 2))
    return shares


def _at_offset(weights: torch.Tensor, offset: int, first: int) -> torch.Tensor:
    """Mean weight of position i on position i + offset, over the positions from `first` on that have such a place, (heads,)."""
    diagonal = torch.diagonal(weights, offset, -2, -1)  # entry k belongs to position k + max(0, -offset)
    return diagonal[..., max(0, first - max(0, -offset)) :].mean((0, 2))


def _kind(shares: dict[str, float], entropy: float) -> str:
    name, share = max(shares.items(), key=lambda item: item[1])
    if share > KIND_SHARE:
        return name
    if entropy <= COLLAPSED:
        return "collapsed"
    return "uniform" if entropy >= UNIFORM else "mixed"


def _nearest(weights: torch.Tensor) -> list[tuple[int | None, float | None]]:
    """For each head the head of its layer that is most like it, with their Jensen-Shannon divergence in bits."""
    heads = weights.shape[1]
    entropies = _entropy(weights).mean((0, 2))
    nearest: list[tuple[int | None, float | None]] = [(None, None)] * heads
    for one, other in itertools.combinations(range(heads), 2):
        middle = _entropy((weights[:, one] + weights[:, other]) / 2).mean()
        bits = max(0.0, float(middle - (entropies[one] + entropies[other]) / 2) / math.log(2))
        for here, there in ((one, other), (other, one)):
            known = nearest[here][1]
            if known is None or bits < known:
                nearest[here] = (there, bits)
    return nearest


def _for_the_picture(maps: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The maps of the first text, (heads, T, keys) float32 by layer; of many layers those at equal distances."""
    names = list(maps)
    picked = sorted({round(i * (len(names) - 1) / max(1, LARGEST_MAPS - 1)) for i in range(LARGEST_MAPS)})
    kept = [names[i] for i in picked if i < len(names)]
    return {name: maps[name][0, :LARGEST_MAPS].float().cpu().numpy() for name in kept}
