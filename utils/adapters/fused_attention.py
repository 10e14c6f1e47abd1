"""Which attention layers run through fused kernels on this device, why others do not, and switching on what can be.

Asks torch which kernel it chooses for each call that really happens (`fused_kernels`); leaves the attention itself to
torch, and making it causal to `causality`.
"""

from __future__ import annotations

import html
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from utils._tables import html_table, text_table
from utils.adapters.attention import CausalMultiheadAttention
from utils.adapters.attention_calls import AttentionCall, attention_calls, example_inputs, runs_of, shared_copy
from utils.adapters.fused_kernels import UNFUSED, chosen_kernel, sdpa_of_multi_head, why_not_fused
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.adapters.probing import left_as_it_was

TOLERANCE = 1e-5
"""Largest change of an output that counts as none; as a share of the largest score where that exceeds 1. Half precision
is allowed as much more as its steps are wider than those of float32."""

BY_HAND = "softmax"
"""What reports call attention that code computes by itself."""


class FusedMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` that never forms its weights, for code that throws them away; gives (output, None)."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `nn.MultiheadAttention` with `need_weights=False`."""
        return super().forward(*_without_weights(args, kwargs), **kwargs)


class FusedCausalMultiheadAttention(CausalMultiheadAttention):
    """`CausalMultiheadAttention` that never forms its weights; gives (output, None)."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `CausalMultiheadAttention` with `need_weights=False`."""
        return super().forward(*_without_weights(args, kwargs), **kwargs)


def _without_weights(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The positional arguments, with `need_weights` (the fifth) off there or in `kwargs`."""
    if len(args) > 4:
        return (*args[:4], False, *args[5:])
    kwargs["need_weights"] = False
    return args


WEIGHTLESS: dict[type, type] = {
    nn.MultiheadAttention: FusedMultiheadAttention,
    CausalMultiheadAttention: FusedCausalMultiheadAttention,
}
"""Class → its twin that forms no weights."""


@dataclass(frozen=True)
class AttentionLayer:
    """How one layer attends.

    Attributes:
        name: path of the module whose code attends.
        attention: what it calls.
        shape: heads × head size.
        inference: kernel in eval mode ("flash", "efficient", "cudnn"); "math" or "softmax" where none is fused.
        training: kernel in training mode, with its dropout; "not run" where the model cannot run so.
        why: why it is not fused, or what was switched on; empty for a layer that was fused as it came.
    """

    name: str
    attention: str
    shape: str
    inference: str
    training: str = "not run"
    why: str = ""

    @property
    def fused(self) -> bool:
        """Whether a fused kernel runs in eval mode."""
        return self.inference not in (UNFUSED, BY_HAND)


@dataclass(frozen=True)
class FusedAttentionReport:
    """Table of a model's attention layers; `summary()` is text, and a notebook shows it as HTML.

    Attributes:
        layers: in the order in which they run.
        device: where the model lies, and its type.
        enabled: names of the layers that were switched on.
        difference: largest change of an output by that.
        refused: what could not be switched on, with the reason.
    """

    layers: tuple[AttentionLayer, ...]
    device: str
    enabled: tuple[str, ...] = ()
    difference: float = 0.0
    refused: tuple[str, ...] = ()

    _COLUMNS = ("layer", "attention", "heads × size", "inference", "training", "why")

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.layers:
            return "No attention was seen: there is nothing to fuse."
        fused = sum(layer.fused for layer in self.layers)
        said = f"{fused} of {len(self.layers)} attention layers run through a fused kernel on {self.device}"
        if self.enabled:
            said += f"; {len(self.enabled)} of them were switched on here, outputs within {self.difference:.1e}"
        return said + "."

    def _rows(self) -> list[tuple[str, ...]]:
        return [(x.name or "the model", x.attention, x.shape, x.inference, x.training, x.why) for x in self.layers]

    def summary(self) -> str:
        """The verdict and the table as text."""
        lines = [self.verdict, *self.refused]
        return "\n".join([*lines, text_table(self._COLUMNS, self._rows(), width=140)] if self.layers else lines)

    __str__ = summary

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(line)}</p>" for line in (self.verdict, *self.refused))
        return said + (html_table(self._COLUMNS, self._rows()) if self.layers else "")


class FlashAttentionWrapper:
    """A model with fused attention wherever it can be switched on, and a report on every layer.

    Switched on are `nn.MultiheadAttention` whose weights nobody reads (`need_weights=False`), and models of transformers
    on "eager" attention ("sdpa"). Weights count as unread when, while the model ran in eval and in training mode, no torch
    function took them and neither the model's output nor any object kept them; a path that those runs did not take would
    find None and fail loudly. Outputs are compared before and after, and what changes them stays off. The given model is
    not touched: `model` is a copy that shares its parameters and buffers and has their names.

    Attributes:
        model: what was given, with fused attention: an `AdaptedModel` for one, else the module itself.
        adapted: the same behind the calling contract.
        enabled: names of the layers that were switched on.

    Example:
        >>> wrapper = FlashAttentionWrapper(model)
        >>> print(wrapper.report())
        >>> logits = wrapper(input_ids)
    """

    def __init__(self, model: Any, config: object = None, *, enable: bool = True) -> None:
        """Examine the model on the device where it lies.

        Args:
            model: an `AdaptedModel`, an `nn.Module`, or what `load_model` gave.
            config: as for `adapt`.
            enable: switch on what can be; False only reports.

        Raises:
            GraphCompletionError: as from `adapt`.
            CallContractError: as from `adapt`.
        """
        given = adapt(model, config)
        self._reasons: dict[str, str] = {}
        self._refused: list[str] = []
        self._difference = 0.0
        self.adapted = self._with_fused(given) if enable else given
        self.enabled = list(self._reasons)
        self.model: Any = self.adapted if isinstance(model, AdaptedModel) else self.adapted.model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `model`."""
        return self.model(*args, **kwargs)

    def report(self) -> FusedAttentionReport:
        """The table of layers, as they run now."""
        layers = []
        for layer in examine(self.adapted).layers:
            reasons = (self._reasons.get(layer.name), layer.why)
            layers.append(replace(layer, why="; ".join(filter(None, reasons))))
        dtype = next((p.dtype for p in self.adapted.parameters() if p.is_floating_point()), torch.float32)
        device = f"{self.adapted.device.type} ({str(dtype).removeprefix('torch.')})"
        return FusedAttentionReport(tuple(layers), device, tuple(self.enabled), self._difference, tuple(self._refused))

    def summary(self) -> str:
        """The report as text."""
        return self.report().summary()

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def _with_fused(self, given: AdaptedModel) -> AdaptedModel:
        """The model after every step that leaves the outputs as they are: all at once, else one by one."""
        steps = [*_weightless_steps(given), *_transformers_steps(given)]
        if len(steps) > 1:
            together = self._stepped(given, given, steps, [])
            if together is not None:
                return together
        current = given
        for step in steps:
            current = self._stepped(given, current, [step], self._refused) or current
        return current

    def _stepped(
        self, given: AdaptedModel, current: AdaptedModel, steps: list[_Step], refused: list[str]
    ) -> AdaptedModel | None:
        """A copy of `current` after the steps, or None where they change the outputs of `given`, or nothing at all."""
        trial, names = shared_copy(current), ", ".join(step.name for step in steps)
        try:
            for step in steps:
                step.apply(trial)
            apart = _difference(given, trial)
        except Exception as error:  # noqa: BLE001 - a foreign model may refuse a switch; it stays off, and the report says so
            refused.append(f"{names} stays as it is: {error}")
            return None
        if not apart <= TOLERANCE * _coarseness(given):
            refused.append(f"{names} stays as it is: fused, the outputs differ by {apart:.1e}")
            return None
        by_hand = {layer.name for layer in examine(trial).layers if layer.inference == BY_HAND}
        for step in steps:
            changed = [name for name in step.layers if name not in by_hand]
            self._reasons.update(dict.fromkeys(changed, step.reason))
            if not changed:
                self._refused.append(
                    f"{step.name} stays as it is: another setting changes nothing, since the code attends by hand whatever it says"
                )
        if by_hand.issuperset(name for step in steps for name in step.layers):
            return None
        self._difference = max(self._difference, apart)
        return trial


@dataclass(frozen=True)
class _Step:
    """One thing to switch on, in place, in a copy of the model."""

    name: str
    layers: tuple[str, ...]
    reason: str
    apply: Callable[[AdaptedModel], None]


def _weightless_steps(adapted: AdaptedModel) -> list[_Step]:
    """`nn.MultiheadAttention` that forms weights which nobody reads."""

    def exchange(path: str) -> Callable[[AdaptedModel], None]:
        def apply(trial: AdaptedModel) -> None:
            module: Any = trial.get_submodule(path)
            module.__class__ = WEIGHTLESS[type(module)]

        return apply

    reason = "switched on: its weights were formed and never read (need_weights=False)"
    return [_Step(path, (path,), reason, exchange(path)) for path in examine(adapted).unread]


def _transformers_steps(adapted: AdaptedModel) -> list[_Step]:
    """Models of transformers that were built or set to "eager" attention."""

    def apply(trial: AdaptedModel) -> None:
        module: Any = trial.model
        module.set_attn_implementation("sdpa")

    config = getattr(adapted.model, "config", None)
    if getattr(config, "_attn_implementation", None) != "eager" or not hasattr(
        adapted.model, "set_attn_implementation"
    ):
        return []
    layers = tuple(layer.name for layer in examine(adapted).layers if layer.inference == BY_HAND)
    reason = 'switched on: attn_implementation="sdpa" in place of "eager"'
    return [_Step('attn_implementation "eager"', layers, reason, apply)]


def _difference(before: AdaptedModel, after: AdaptedModel) -> float:
    """Largest change of an output in eval mode, with and without a mask; a share of the largest score where that exceeds 1."""
    lengths, _ = runs_of(before)
    worst = 0.0
    for length in lengths:
        inputs = example_inputs(before, length)
        masks: list[torch.Tensor | None] = [None]
        if before.contract.mask_name is not None and inputs.dim() == 2 and length > 2:
            masks.append(torch.ones_like(inputs).index_fill(1, torch.tensor([length - 1], device=inputs.device), 0))
        for mask in masks:
            with left_as_it_was(before), left_as_it_was(after):
                one, other = (model(inputs, mask).logits.double() for model in (before, after))
            scale = max(1.0, float(one.abs().max()))
            worst = max(worst, float((one - other).abs().max()) / scale)
    return worst


def _coarseness(adapted: AdaptedModel) -> float:
    """How much coarser than float32 the model's type is."""
    dtype = next((p.dtype for p in adapted.parameters() if p.is_floating_point()), torch.float32)
    return max(1.0, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Examination:
    """What a run in eval and one in training mode showed: the layers, and paths whose weights nobody read."""

    layers: tuple[AttentionLayer, ...]
    unread: tuple[str, ...]


def examine(adapted: AdaptedModel) -> Examination:
    """Run the model on made-up inputs, in eval and in training mode, and look at every attention call."""
    (length, _), _ = runs_of(adapted)
    inference, unread = _watched(adapted, length, training=False)
    try:
        training, unread_there = _watched(adapted, length, training=True)
    except Exception:  # noqa: BLE001 - a model may be unable to train on made-up inputs; the table then says "not run"
        training, unread_there = {}, unread
    layers = [replace(layer, training=training[place].inference if place in training else "not run")
              for place, layer in inference.items()]  # fmt: skip
    modules = dict(adapted.named_modules())
    names = [path for path in unread if path in unread_there and type(modules[path]) in WEIGHTLESS]
    return Examination(
        tuple(_told(layer, training.get(place)) for layer, place in zip(layers, inference)), tuple(names)
    )


def _told(layer: AttentionLayer, training: AttentionLayer | None) -> AttentionLayer:
    """The layer, with the reason why training is not fused where only that is not."""
    if layer.why or training is None or not training.why:
        return layer
    return replace(layer, why=f"in training: {training.why}")


class _Readers(TorchFunctionMode):
    """Notes which of the watched tensors any torch function takes."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[tuple[str, weakref.ref[torch.Tensor]]] = []
        self.read: set[str] = set()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [
            value for x in (*args, *(kwargs or {}).values()) for value in (x if isinstance(x, (tuple, list)) else (x,))
        ]
        self.read |= {
            path for path, tensor in self.watched if any(value is tensor() for value in given if value is not None)
        }
        return function(*args, **(kwargs or {}))


def _watched(
    adapted: AdaptedModel, length: int, *, training: bool
) -> tuple[dict[tuple[str, int, str, int], AttentionLayer], list[str]]:
    """Layers by place, and paths of multi-head attention whose weights nobody took or kept."""
    readers, kept = _Readers(), []
    handle = adapted.model.register_forward_hook(lambda module, inputs, output: kept.append(output))
    layers: dict[tuple[str, int, str, int], AttentionLayer] = {}

    def carry_out(call: AttentionCall, run: Callable[[], Any]) -> Any:
        result = run()
        layer = _layer(call)
        if layer is not None and call.run == 0:
            layers[call.place] = layer
        if call.kind == "mha" and result[1] is not None:
            readers.watched.append((call.path, weakref.ref(result[1])))
        return result

    try:
        with left_as_it_was(adapted), torch.set_grad_enabled(training):
            adapted.train(training)
            with attention_calls(adapted, carry_out) as calls, readers:
                adapted(example_inputs(adapted, length))
            for call in calls:
                call.result = None
            # in training the graph keeps them too, which says nothing about the code
            held = set() if training else {path for path, tensor in readers.watched if tensor() is not None}
    finally:
        handle.remove()
    return layers, sorted({path for path, _ in readers.watched} - readers.read - held)


def _layer(call: AttentionCall) -> AttentionLayer | None:
    """One line of the table; None for a softmax over anything but scores of attention."""
    if call.kind == "softmax":
        queries, keys = call.lengths()
        shape = call.arguments["input"].shape
        if call.key_axis != -1 or queries != keys or len(shape) < 3:
            return None
        heads = f"{shape[1]} × ?" if len(shape) == 4 else "?"
        why = "softmax(q·kᵀ)·v by hand; call torch.nn.functional.scaled_dot_product_attention instead"
        return AttentionLayer(call.path, "softmax by hand", heads, BY_HAND, why=why)
    arguments = call.arguments if call.kind == "sdpa" else sdpa_of_multi_head(call.arguments)
    query = arguments["query"]
    heads = f"{query.shape[-3] if query.dim() > 2 else 1} × {query.shape[-1]}"
    if call.kind == "sdpa":
        return AttentionLayer(
            call.path, "scaled_dot_product_attention", heads, chosen_kernel(arguments), why=why_not_fused(arguments)
        )
    if call.arguments.get("need_weights", True):
        why = "asked for its weights (need_weights=True), which a fused kernel never forms"
        return AttentionLayer(call.path, type(call.module).__name__, heads, BY_HAND, why=why)
    kernel, why = chosen_kernel(arguments), why_not_fused(arguments)
    return AttentionLayer(call.path, type(call.module).__name__, heads, kernel, why=why)
