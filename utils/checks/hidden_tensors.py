"""Tensors that influence a model and are not part of its state_dict: where they lie, and whether a formula makes them.

Judges nothing; what follows from a hidden tensor is for `round_trip` to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

DEPTH = 4
"""Containers within containers that are looked into."""
FEW_VALUES = 8
"""A tensor of at most this many different values is a mask, a slope or a constant: written down, not drawn."""
PREDICTABLE = 0.99
"""Share of the variance that a recurrence of two steps explains in sinusoids, ramps and geometric series (all of it) and
in random numbers (next to nothing)."""


@dataclass(frozen=True)
class Hidden:
    """A tensor that `state_dict` leaves out.

    Attributes:
        name: dotted path from the model: "blocks.0.table", "layers[1].weight".
        tensor: the tensor itself.
        kind: "attribute" (a plain attribute), "module" (a parameter or buffer of a module that is not registered, in a
            plain list for example) or "buffer" (registered with persistent=False).
        owner: the module in a plain container, or the attribute: what has to be registered.
    """

    name: str
    tensor: torch.Tensor
    kind: str
    owner: str

    @property
    def learned(self) -> bool:
        """Whether training changes it, or should."""
        return self.tensor.requires_grad

    @property
    def computed(self) -> bool:
        """Whether its values look as if the constructor computed them, so that a new process has them again."""
        return not self.learned and follows_formula(self.tensor)


def hidden_tensors(model: nn.Module) -> list[Hidden]:
    """Every tensor that `model` holds and its state_dict does not, each once."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, torch.Tensor)}
    seen = saved | {id(parameter) for parameter in model.parameters()}
    found = []
    for hidden in _all(model):
        if id(hidden.tensor) not in seen:
            seen.add(id(hidden.tensor))
            found.append(hidden)
    return found


def _all(model: nn.Module) -> Iterator[Hidden]:
    registered = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield Hidden(prefix + name, buffer, "buffer", prefix + name)
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and not name.endswith("_hooks"):
                yield from _inside(value, prefix + name, prefix + name, registered, DEPTH)


def _inside(value: Any, name: str, owner: str, registered: set[int], depth: int) -> Iterator[Hidden]:
    """Tensors in a plain attribute and in the containers and unregistered modules that it holds."""
    if isinstance(value, torch.Tensor):
        yield Hidden(name, value, "attribute", owner)
    elif isinstance(value, nn.Module):
        if id(value) not in registered:
            for inner, tensor in [*value.named_parameters(), *value.named_buffers()]:
                yield Hidden(f"{name}.{inner}", tensor, "module", owner)
    elif depth and isinstance(value, (list, tuple, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _inside(item, f"{name}[{key!r}]", owner, registered, depth - 1)


def follows_formula(tensor: torch.Tensor) -> bool:
    """Whether the values are whole numbers, few, or predictable from their neighbours along an axis.

    Sinusoids, ramps, geometric series (inverse frequencies, slopes) and masks are; random and trained numbers are not.

    Example:
        >>> follows_formula(torch.arange(64).float().mul(0.3).sin()), follows_formula(torch.randn(64))
        (True, False)
    """
    if not tensor.is_floating_point() or tensor.numel() <= FEW_VALUES:
        return not tensor.is_complex()
    values = tensor.detach().double().cpu()
    values = values.nan_to_num(posinf=0.0, neginf=0.0)
    if values.unique().numel() <= FEW_VALUES:
        return True
    return any(_predictable(values.movedim(axis, -1)) for axis in range(values.dim()) if values.shape[axis] > 4)


def _predictable(series: torch.Tensor) -> bool:
    """Whether x[t] = a x[t-1] + b x[t-2] + c holds for each series along the last axis, nearly."""
    lines = series.reshape(-1, series.shape[-1])[:512, :512]  # (N, T): more tells no more
    steps = torch.stack([lines[:, 1:-1], lines[:, :-2], torch.ones_like(lines[:, 2:])], -1)  # (N, T - 2, 3)
    wanted = lines[:, 2:, None]
    gram = steps.transpose(1, 2) @ steps + 1e-12 * torch.eye(3, dtype=steps.dtype)
    solved = torch.linalg.solve(gram, steps.transpose(1, 2) @ wanted)
    left = (wanted - steps @ solved).square().sum()
    spread = (wanted - wanted.mean(1, keepdim=True)).square().sum()
    return bool(left <= (1 - PREDICTABLE) * spread)
