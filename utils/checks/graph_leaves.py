"""The tensors that a loss would teach, registered as parameters or not. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


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
        if variable is not None:
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
    names = {id(tensor): name for name, tensor in _held(model)}
    return sorted(
        names.get(key, f"a tensor of shape {tuple(leaf.shape)} made in forward") for key, leaf in strangers.items()
    )


def _held(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that an attribute of a module holds, with the name of the attribute."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_modules"):
                continue
            label = attribute if attribute != "_buffers" else "buffer"
            yield from ((".".join(filter(None, [name, label, *inner])), tensor) for inner, tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[tuple[list[str], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield [], value
    elif isinstance(value, nn.Module):
        yield from (([name], parameter) for name, parameter in value.named_parameters())
    elif isinstance(value, (list, tuple, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from (([str(key), *inner], tensor) for inner, tensor in _tensors(item))
