"""What the loss that a model makes by itself asks for: which token, with which sign, how strongly. Judges nothing.

The gradient of a cross-entropy at the logits is negative at the token that is asked for and positive at all others,
whatever is added to the loss, and its size is known: (1 - p) divided by the number of labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.model_outputs import is_loss_name, losses_in, tensors_in
from utils.adapters.signature import ModelSignatureInspector

UNSHIFTED, SHIFTED = "labels", "targets"
"""Arguments of a forward with a loss: of one that shifts by itself, by the convention of transformers, and of one whose
labels come shifted already."""
AGREE = 0.9
"""Share of the positions that carry loss whose gradient must point at the token at one distance for it to be the shift."""


@dataclass(frozen=True)
class OwnLoss:
    """What is known about the loss of a `forward`.

    Attributes:
        argument: that the labels were given to.
        trains: whether any gradient leaves it.
        distance: how many places ahead the tokens lie that it speaks of: 0, 1 or 2; None where that is not seen.
        strength: its gradient at those tokens, 1 for the mean of cross-entropies; negative where it pushes them away.
    """

    argument: str
    trains: bool = True
    distance: int | None = None
    strength: float | None = None


def own_loss(adapted: AdaptedModel, inputs: torch.Tensor) -> OwnLoss | None:
    """What the model's own loss asks for with the ids themselves as labels; None where `forward` makes no loss of labels.

    Args:
        adapted: a language model; it is put into eval mode.
        inputs: (B, T) ids.
    """
    contract = adapted.contract
    known = ModelSignatureInspector(adapted.model).get_parameters()
    argument = next((name for name in (UNSHIFTED, SHIFTED) if name in known), None)
    if argument is None or contract.label_name or contract.packed:
        return None
    adapted.eval()
    labels = inputs.t() if contract.time_first else inputs
    positional, keywords = contract.arguments(inputs, None, None, adapted.model)
    with torch.enable_grad():
        output = adapted.model(*positional, **{**keywords, argument: labels.clone()})
        losses = list(losses_in(output).values())
        logits = contract.logits(output, inputs.shape[0])
        if logits.shape[:-1] != inputs.shape or not logits.requires_grad:
            return None
        if not losses:
            return OwnLoss(argument, trains=False) if _holds_detached_loss(output) else None
        (gradient,) = torch.autograd.grad(losses[0], logits, allow_unused=True)
    if gradient is None:
        return None
    for sign in (1, -1):
        distance = _distance(sign * gradient, inputs)
        if distance is not None:
            return OwnLoss(argument, True, distance, _strength(gradient, logits.detach(), inputs, distance))
    return OwnLoss(argument)


def _holds_detached_loss(output: Any) -> bool:
    """Whether a scalar called a loss, of which no gradient leaves, is in an output."""
    names = ((path[-1] if path else "", tensor) for path, tensor in tensors_in(output) if tensor.dim() == 0)
    return any(isinstance(name, str) and is_loss_name(name) and tensor.grad_fn is None for name, tensor in names)


def _distance(gradient: torch.Tensor, inputs: torch.Tensor) -> int | None:
    """At which distance from its position the tokens lie that a gradient (B, T, V) asks for."""
    asked, counts = gradient.argmin(-1), gradient.abs().amax(-1) > 0  # (B, T)
    for distance in range(min(3, inputs.shape[1])):
        length = inputs.shape[1] - distance
        scored = counts[:, :length]
        hits = (asked[:, :length] == inputs[:, distance:]) & scored
        if scored.any() and float(hits.sum()) >= AGREE * float(counts.sum()):
            return distance
    return None


def _strength(gradient: torch.Tensor, logits: torch.Tensor, inputs: torch.Tensor, distance: int) -> float:
    """The gradient (B, T, V) at the tokens that it asks for, as a multiple of what the mean of cross-entropies has there."""
    length = inputs.shape[1] - distance
    places = inputs[:, distance:, None]
    given = gradient[:, :length].gather(2, places).float()  # (B, length, 1)
    chances = logits[:, :length].float().softmax(-1).gather(2, places)
    scored = given != 0
    usual = ((chances - 1) * scored).sum() / scored.sum()
    return float(given.sum() / usual)
