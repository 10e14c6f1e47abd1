"""Leaves a model as it was: what a foreign `forward` may change is remembered before a visit and put back after it.

Knows modules, tensors and plain containers; what is asked during a visit is for `probing` and `inference`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

LARGEST_COPY = 50_000_000
"""Numbers up to which the weights are copied too: 200 MB in float32. Beyond, only buffers are."""

_DEPTH = 6
"""Containers within containers that are followed."""

Undo = Callable[[], None]


class Remembered:
    """What a model is now, and visits after each of which it is that again.

    Training modes are put back, weights (up to `LARGEST_COPY` numbers), buffers, modules and attributes that were added,
    replaced or removed, the content of tensors, generators, lists, dicts and sets among the attributes, and all random
    states. Objects of the user's own classes are not followed. Modes are set one by one, since `train()` and `eval()` may
    be overridden to do more.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        small = sum(parameter.numel() for parameter in model.parameters()) <= LARGEST_COPY
        self._undo = [_module_undo(module, small) for module in modules]
        self._modes = [(module, module.training) for module in modules]
        self._devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """Run the block in eval mode without gradients; afterwards the model is as it was when it was remembered."""
        for module, _ in self._modes:
            _set_mode(module, False)
        try:
            with _random_states_kept(), torch.random.fork_rng(devices=self._devices), torch.no_grad():
                yield
        finally:
            with torch.no_grad():
                for step in self._undo:
                    step()
            for module, training in self._modes:
                _set_mode(module, training)


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode without gradients; afterwards the model and all random states are as before.

    See `Remembered`, which serves where one model is visited many times.
    """
    with Remembered(model).visit():
        yield


def _set_mode(module: nn.Module, training: bool) -> None:
    if module.training != training:  # a scripted module refuses to be told what it knows
        module.training = training


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Keep the random states of Python and, where it is in use, NumPy; torch's own are for `fork_rng`."""
    state, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def _module_undo(module: nn.Module, weights: bool) -> Undo:
    """A step that gives one module back what it has now."""
    if isinstance(module, torch.jit.ScriptModule):  # its tensors cannot be replaced, and are reached as buffers
        return _contents_undo([buffer for _, buffer in module.named_buffers(recurse=False)])
    tables = {
        name: table.copy()
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
        if isinstance(table := vars(module).get(name), (dict, set))
    }
    held = [*module._buffers.values(), *(module._parameters.values() if weights else ())]
    steps = [_contents_undo([tensor for tensor in held if tensor is not None])]
    plain = _plain_attributes(module)
    steps += [_content_undo(value, _DEPTH) for value in plain.values()]

    def undo() -> None:
        for name, table in tables.items():
            now = vars(module)[name]
            if now != table if isinstance(table, set) else not _same_entries(now, table):
                now.clear()
                now.update(table)
        _restore_attributes(module, plain)
        for step in steps:
            step()

    return undo


def _same_entries(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return list(now) == list(before) and all(now[name] is value for name, value in before.items())


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes but those that torch keeps for itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if not (name.startswith("_") and isinstance(value, dict))
        and name not in ("training", "_non_persistent_buffers_set")
    }


def _restore_attributes(module: nn.Module, before: dict[str, Any]) -> None:
    now = vars(module)
    for name in [n for n in _plain_attributes(module) if n not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _content_undo(value: Any, depth: int) -> Undo:
    """A step that puts the content of one object back; nothing where it has none that could change."""
    if isinstance(value, torch.Tensor):
        return _contents_undo([value])
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: _ignore(value.set_state(state))
    if depth == 0 or type(value) not in (list, dict, set, tuple):
        return _nothing
    inner = list(value.values()) if isinstance(value, dict) else list(value)
    steps = [step for item in inner if (step := _content_undo(item, depth - 1)) is not _nothing]
    copy = value if isinstance(value, tuple) else value.copy()

    def undo() -> None:
        if isinstance(value, list):
            value[:] = copy
        elif isinstance(value, (dict, set)):
            value.clear()
            value.update(copy)
        for step in steps:
            step()

    return undo


def _contents_undo(tensors: list[torch.Tensor]) -> Undo:
    """A step that writes the numbers of tensors back where they have changed."""
    copies = [(tensor, tensor.detach().clone()) for tensor in tensors if tensor.layout == torch.strided]

    def undo() -> None:
        for tensor, copy in copies:
            if tensor.shape != copy.shape:
                tensor.resize_(copy.shape)
            if not _same(tensor, copy):
                tensor.copy_(copy)

    return undo if copies else _nothing


def _same(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether all numbers are equal, NaN with NaN."""
    return torch.equal(tensor, copy) or bool(((tensor == copy) | ((tensor != tensor) & (copy != copy))).all())


def _nothing() -> None:
    return None


def _ignore(_: object) -> None:
    return None
