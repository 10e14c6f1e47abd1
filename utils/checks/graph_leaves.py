"""The tensors that a loss would teach, registered as parameters or not. Judges nothing."""

from __future__ import annotations

import torch
from torch import nn

from utils.checks.hidden_tensors import hidden_tensors


def leaves_of(loss: torch.Tensor) -> list[torch.Tensor]:
    """Every tensor at which the backward pass of `loss` would leave a gradient, each once."""
    found: dict[int, torch.Tensor] = {}
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # only the nodes that accumulate a gradient hold one
        if isinstance(variable, torch.Tensor):
            found[id(variable)] = variable
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def unregistered_leaves(model: nn.Module, loss: torch.Tensor) -> list[str]:
    """What the loss would teach and `model.parameters()` leaves out, so that no optimizer ever moves it.

    Returns:
        "module.attribute" where the tensor is held by a module's attribute (or a list, dict or module in one), else
        "a tensor of shape (…) made in forward".

    Example:
        >>> model.scale = torch.ones(8, requires_grad=True)      # no nn.Parameter
        >>> unregistered_leaves(model, model(ids).sum())
        ['scale']
    """
    known = {id(parameter) for parameter in model.parameters()}
    strangers = {id(leaf): leaf for leaf in leaves_of(loss) if id(leaf) not in known}
    if not strangers:
        return []
    names = {id(hidden.tensor): hidden.name for hidden in hidden_tensors(model)}
    names |= {id(buffer): name for name, buffer in model.named_buffers()}
    made = "a tensor of shape {} made in forward"
    return sorted(names.get(key, made.format(tuple(leaf.shape))) for key, leaf in strangers.items())
