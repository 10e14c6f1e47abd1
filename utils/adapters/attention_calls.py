"""Which attention a model computes, and in which of its modules, whatever code it is written in.

Watches torch functions while the model runs: `scaled_dot_product_attention` under any name or helper, the attention of
`torch.nn`, and a softmax by hand. Nothing is changed; what follows from a call is for `causal_calls`, `fused_attention`
and `attention_maps` to say.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from utils.adapters.attention_functions import kind_of, mha_arguments, sdpa_arguments, softmax_arguments
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.probing import left_as_it_was
from utils.errors import CallContractError

_BINDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "sdpa": sdpa_arguments,
    "mha": mha_arguments,
    "softmax": softmax_arguments,
}


@dataclass(eq=False)
class AttentionCall:
    """One call, as it happened.

    Attributes:
        kind: one of `KINDS`.
        path: name of the module whose code made the call; "" for the root.
        module: that module.
        run: how many times the module had been run before.
        index: how many calls of this kind the module (with what it calls) had made before in this run.
        arguments: by name.
        result: what the call gave.
    """

    kind: str
    path: str
    module: nn.Module
    run: int
    index: int
    arguments: dict[str, Any] = field(repr=False)
    result: Any = field(default=None, repr=False)

    @property
    def place(self) -> tuple[str, int, str, int]:
        """What tells the call from the others of one run of the model."""
        return self.path, self.run, self.kind, self.index

    def lengths(self) -> tuple[int, int]:
        """Numbers of queries and of keys; of a softmax, the last axis but one and the axis that is summed over."""
        if self.kind == "sdpa":
            return self.arguments["query"].shape[-2], self.arguments["key"].shape[-2]
        if self.kind == "mha":  # (T, B, C) or (T, C)
            return self.arguments["query"].shape[0], self.arguments["key"].shape[0]
        shape = self.arguments["input"].shape
        return (shape[-2] if len(shape) > 1 else 1), shape[self.key_axis]

    @property
    def key_axis(self) -> int:
        """Axis that a softmax sums over, counted from the end."""
        axis, dims = self.arguments["dim"], self.arguments["input"].dim()
        return -1 if axis is None or dims == 0 else (axis if axis < 0 else axis - dims)


@dataclass
class _Frame:
    path: str
    module: nn.Module
    run: int
    counts: dict[str, int] = field(default_factory=dict)


class _Watch(TorchFunctionMode):
    """Notes attention calls, with the module that runs while they happen."""

    def __init__(self, root: nn.Module, carry_out: Callable[[AttentionCall, Callable[[], Any]], Any] | None) -> None:
        super().__init__()
        self.paths = {module: path for path, module in reversed(list(root.named_modules()))}
        self.carry_out = carry_out
        self.calls: list[AttentionCall] = []
        self.frames: list[_Frame] = [_Frame("", root, 0)]
        self.runs: dict[nn.Module, int] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind, named = kind_of(function), kwargs or {}
        if kind is None:
            return function(*args, **named)
        call = self._noted(kind, _BINDERS[kind](*args, **named))
        if self.carry_out is None:
            call.result = function(*args, **named)
        else:
            call.result = self.carry_out(call, lambda: function(*args, **named))
        return call.result

    def _noted(self, kind: str, arguments: dict[str, Any]) -> AttentionCall:
        owner = self._owner(kind)
        call = AttentionCall(kind, owner.path, owner.module, owner.run, owner.counts.get(kind, 0), arguments)
        for frame in self.frames:
            frame.counts[kind] = frame.counts.get(kind, 0) + 1
        self.calls.append(call)
        return call

    def _owner(self, kind: str) -> _Frame:
        """The innermost module that somebody wrote: calls of `nn.Softmax` and the like belong to the code around them.

        The attention of a subclass of `nn.TransformerEncoderLayer` belongs to the layer, whose short cut passes it by.
        """
        for frame in reversed(self.frames):
            if kind == "mha" and isinstance(frame.module, nn.TransformerEncoderLayer):
                return frame
        for frame in reversed(self.frames):
            if isinstance(frame.module, nn.MultiheadAttention) or not type(frame.module).__module__.startswith(
                "torch.nn."
            ):
                return frame
        return self.frames[-1]

    def enter(self, module: nn.Module, _: Any) -> None:
        """A module begins to run."""
        if module in self.paths:
            run = self.runs.get(module, 0)
            self.runs[module] = run + 1
            self.frames.append(_Frame(self.paths[module], module, run))

    def leave(self, module: nn.Module, _: Any, __: Any) -> None:
        """A module is done, or gave up."""
        if module in self.paths and len(self.frames) > 1:
            self.frames.pop()


@contextlib.contextmanager
def attention_calls(
    root: nn.Module, carry_out: Callable[[AttentionCall, Callable[[], Any]], Any] | None = None
) -> Iterator[list[AttentionCall]]:
    """Record the attention calls that `root` makes while the block runs.

    The hooks are those of the process, for the time of the block; the model's own are not touched.

    Args:
        root: paths are counted from here.
        carry_out: called with each call and a function that carries it out; gives the call's result.
    """
    watch = _Watch(root, carry_out)
    handles = [
        register_module_forward_pre_hook(watch.enter),
        register_module_forward_hook(watch.leave, always_call=True),
    ]
    try:
        with watch:
            yield watch.calls
    finally:
        for handle in handles:
            handle.remove()


def example_inputs(adapted: AdaptedModel, length: int) -> torch.Tensor:
    """Made-up inputs of two examples: ids (2, length), or pixels for a vision model."""
    shape = getattr(adapted.contract, "image_shape", None)
    if shape is not None:
        pixels = torch.linspace(0, 1, 2 * shape[0] * shape[1] * shape[2], device=adapted.device)
        return pixels.view(2, *shape).to(next((p.dtype for p in adapted.parameters()), torch.float32))
    rows = adapted.contract.vocab_size or adapted.contract.output_size or 2
    return torch.arange(2 * length, device=adapted.device).view(2, length) % rows


def runs_of(adapted: AdaptedModel) -> tuple[tuple[int, int], tuple[list[AttentionCall], list[AttentionCall]]]:
    """Two lengths and the attention calls of a run at each; one length twice for a model that takes no other.

    Raises:
        CallContractError: the model runs at none of the lengths that were tried.
    """
    limit = adapted.contract.max_length or 7
    found: dict[int, list[AttentionCall]] = {}
    refused: Exception | None = None
    for length in dict.fromkeys((min(7, limit), min(5, max(1, limit - 1)), limit)):
        if len(found) < 2:
            try:
                with left_as_it_was(adapted), attention_calls(adapted) as calls:
                    adapted(example_inputs(adapted, length))
                found[length] = calls
            except Exception as error:  # noqa: BLE001 - a model may take some lengths only; those are used
                refused = error
    if not found:
        raise CallContractError(
            f"{adapted.name} could not be called with {limit} tokens or fewer: {refused}"
        ) from refused
    first, second = next(iter(found)), list(found)[-1]
    return (first, second), (found[first], found[second])


def shared_copy(adapted: AdaptedModel) -> AdaptedModel:
    """A copy of the modules that shares every parameter and buffer."""
    tensors = [*adapted.parameters(), *adapted.buffers()]
    return copy.deepcopy(adapted, {id(tensor): tensor for tensor in tensors})
