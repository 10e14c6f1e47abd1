"""Lends a model to a check and takes it back exactly as it was. Knows nothing about checks."""

from __future__ import annotations

import collections
import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

_CONTAINERS = (list, dict, set, collections.deque)


@contextlib.contextmanager
def preserved(model: nn.Module, random_states: bool = True) -> Iterator[nn.Module]:
    """Within the block `model` may be run, trained and hooked; afterwards it is as it was, also after an exception.

    Restored: train/eval mode of every submodule, gradients (None stays None, an existing tensor comes back untouched),
    values, device and dtype of parameters and buffers (an `nn.Embedding` with `max_norm` rewrites its weight in
    `forward`), `requires_grad`, hooks and other attributes of the modules, and the random states of Python, NumPy, torch
    and CUDA. Within the block every gradient starts as None. Costs one copy of the weights.

    What a model keeps outside of its modules (module-level globals, files) is not seen.

    Args:
        model: what is lent.
        random_states: False leaves them to the block, for one in which somebody else's code runs too; `random_states_kept`
            is for the parts that are ours.
    """
    undo = [_restore_random_states()] if random_states else []
    undo += [*(_restore_attributes(module) for module in model.modules())]
    undo += [_restore_tensor(tensor) for tensor in _tensors(model)]
    try:
        yield model
    finally:
        with torch.no_grad():
            for restore in undo:
                restore()


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Within the block anything may be drawn; afterwards the random states of Python, NumPy, torch and CUDA are as before."""
    restore = _restore_random_states()
    try:
        yield
    finally:
        restore()


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Parameters, buffers and tensors kept as plain attributes, each once."""
    found = [*model.parameters(), *model.buffers()]
    found += [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return [tensor for tensor in {id(tensor): tensor for tensor in found}.values() if not is_lazy(tensor)]


def _restore_tensor(tensor: torch.Tensor) -> Callable[[], None]:
    saved, wanted = tensor.detach().clone(), tensor.requires_grad
    gradient = tensor.grad if tensor.is_leaf else None
    if tensor.is_leaf:
        tensor.grad = None

    def restore() -> None:
        if tensor.device != saved.device or tensor.dtype != saved.dtype or tensor.shape != saved.shape:
            tensor.data = saved
        elif not torch.equal(tensor, saved):
            tensor.data.copy_(saved)
        if tensor.is_leaf:
            tensor.requires_grad_(wanted)
            tensor.grad = gradient

    return restore


def _restore_attributes(module: nn.Module) -> Callable[[], None]:
    attributes = dict(vars(module))
    contents = [(value, _copy(value)) for value in attributes.values() if isinstance(value, _CONTAINERS)]

    def restore() -> None:
        for container, saved in contents:
            _refill(container, saved)
        now = vars(module)
        for name in [name for name in now if name not in attributes]:
            del now[name]
        now.update(attributes)

    return restore


def _copy(container: Any) -> Any:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _refill(container: Any, saved: list[Any]) -> None:
    """Give `container` its old items back, in place, where it no longer holds the very same objects."""
    now = _copy(container)
    flat = (lambda items: [part for item in items for part in item]) if isinstance(container, dict) else list
    if len(now) == len(saved) and all(a is b for a, b in zip(flat(now), flat(saved), strict=True)):
        return
    container.clear()
    (container.extend if isinstance(container, (list, collections.deque)) else container.update)(saved)


def _restore_random_states() -> Callable[[], None]:
    python, cpu = random.getstate(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None

    def restore() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if numpy is not None:
            numpy.random.set_state(numpy_state)

    return restore
