"""What an adapted model returns, and where a foreign output keeps its logits and losses.

Knows tensors and containers; leaves calling the model to `model_adapter` and the choice of objective to `training`. Hands on
what `logits` and `losses` hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from utils.adapters.logits import LogitsSelector, follow
from utils.adapters.losses import IGNORED_LABEL, aligned, counted, cross_entropy, next_token_loss

__all__ = [
    "IGNORED_LABEL",
    "LOGITS_NAMES",
    "LogitsSelector",
    "ModelOutputs",
    "aligned",
    "counted",
    "cross_entropy",
    "find_logits",
    "follow",
    "is_loss_name",
    "losses_in",
    "next_token_loss",
    "scalars_in",
    "tensors_in",
]

LOGITS_NAMES = ("logits", "lm_logits", "prediction_logits", "output", "outputs", "predictions", "scores", "y", "x")
"""Names under which models return logits, the usual ones first."""

_BESIDE = ("aux", "hidden", "embed", "attn", "attention", "pool", "state", "mem", "weight", "router", "draft", "past")
"""Parts of names under which models return what is not their answer."""

_LOSS = re.compile(
    r"loss|(^|_)(aux|kl|kld|penalty|balance|balancing|ponder(_cost)?|regulari[sz]ation|reg|commitment|commit|cost)($|_)"
)


@dataclass
class ModelOutputs:
    """Result of one call.

    Attributes:
        logits: (B, T, V) scores before the softmax.
        loss: scalar, mean over the labels that count, in nats; None where no labels were given.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None = None

    def __getitem__(self, key: str) -> torch.Tensor | None:
        if key not in ("logits", "loss"):
            raise KeyError(f"{key!r} is no output; there are 'logits' and 'loss'")
        return getattr(self, key)


torch.export.register_dataclass(ModelOutputs, serialized_type_name="utils.adapters.model_outputs.ModelOutputs")


def losses_in(output: Any) -> dict[tuple[str | int, ...], torch.Tensor]:
    """Scalars that training can lower: they depend on weights, and their name, where they have one, is that of a loss."""
    found = {}
    for path, tensor in tensors_in(output):
        named = next((step for step in reversed(path) if isinstance(step, str)), None)
        if tensor.dim() == 0 and tensor.grad_fn is not None and (named is None or is_loss_name(named)):
            found[path] = tensor
    return found


def is_loss_name(name: str) -> bool:
    """Whether a name is that of a loss: `aux_loss`, `kl`, `l_aux`, `balance`, but not `entropy` or `temperature`."""
    return bool(_LOSS.search(name.lower()))


def scalars_in(output: Any) -> list[tuple[tuple[str | int, ...], float]]:
    """Scalar floating-point tensors of an output with their paths."""
    return [(path, float(tensor)) for path, tensor in tensors_in(output) if tensor.numel() == 1 and tensor.dim() == 0]


def tensors_in(
    output: Any, path: tuple[str | int, ...] = (), depth: int = 3
) -> list[tuple[tuple[str | int, ...], torch.Tensor]]:
    """List the floating-point tensors of an output with their paths, in the order in which the model gives them."""
    if isinstance(output, torch.Tensor):
        return [(path, output)] if output.is_floating_point() else []
    if depth == 0 or output is None:
        return []
    steps: list[tuple[str | int, Any]]
    if isinstance(output, (str, bytes, int, float, torch.nn.Module, torch.dtype, torch.device)):
        return []
    if isinstance(output, Mapping):  # a transformers ModelOutput is one too
        steps = list(output.items())
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        steps = [(name, getattr(output, name)) for name in output._fields]
    elif isinstance(output, (tuple, list)):
        steps = list(enumerate(output))
    elif is_dataclass(output) and not isinstance(output, type):
        steps = [(field.name, getattr(output, field.name)) for field in fields(output)]
    elif hasattr(output, "__dict__") and not isinstance(output, type):
        steps = list(vars(output).items())
    else:
        return []
    found = []
    for step, value in steps:
        found += tensors_in(value, (*path, step), depth - 1)
    return found


def find_logits(
    output: Any,
    batch: int,
    length: int,
    vocab_size: int | None,
    is_head: Callable[[torch.Tensor], bool] | None = None,
) -> tuple[LogitsSelector, torch.Size] | None:
    """Find the logits in the output of a probe call with distinct `batch` and `length`.

    A tensor counts when its axes can be told apart as batch, time and vocabulary. Known names win over unknown ones, a
    vocabulary-wide tensor over any other, earlier ones over later ones; in a list of equal ones the last is the model's
    final word. One row of scores per sequence wins over hidden states where `is_head` says that a head gave it.

    Returns:
        The selector and the shape of the tensor that it selects, or None where no tensor can be logits.
    """
    ranked: list[tuple[int, int, LogitsSelector, torch.Size]] = []
    tensors = tensors_in(output)
    widths = {tensor.shape[-1] for _, tensor in tensors if tensor.dim() == 3}
    for order, (path, tensor) in enumerate(tensors):
        layout = _layout_of(tuple(tensor.shape), batch, length, vocab_size)
        if layout is None:
            continue
        selector = LogitsSelector(path, layout)
        rank = 0 if selector.width(tuple(tensor.shape)) == vocab_size else 4
        if layout == "BV":
            scores = is_head is not None and tensor.shape[-1] not in widths and is_head(tensor)
            rank += -2 if scores else 4 if tensor.shape[-1] == length else 3
        ranked.append((rank + _rank_of_name(path), order, selector, tensor.shape))
    if not ranked:
        return None
    _, _, selector, shape = min(ranked, key=lambda entry: entry[:2])
    return _last_of_equals(output, selector, shape), shape


def _rank_of_name(path: tuple[str | int, ...]) -> int:
    name = path[-1] if path and isinstance(path[-1], str) else None
    if name in LOGITS_NAMES[:3]:
        return -8
    named = [step.lower() for step in path if isinstance(step, str)]
    if any(part in step for part in _BESIDE for step in named):
        return 6
    return 1 if name is None else 0 if "logit" in name.lower() else 2


def _last_of_equals(output: Any, selector: LogitsSelector, shape: torch.Size) -> LogitsSelector:
    """The last of a list of tensors of one shape, as models with a head on every layer give them."""
    if not selector.path or not isinstance(selector.path[-1], int):
        return selector
    beside = follow(output, selector.path[:-1])
    equal = isinstance(beside, list) and all(isinstance(t, torch.Tensor) and t.shape == shape for t in beside)
    return LogitsSelector((*selector.path[:-1], -1), selector.layout) if equal and len(beside) > 1 else selector


def _layout_of(shape: tuple[int, ...], batch: int, length: int, vocab_size: int | None) -> str | None:
    if len(shape) == 2 and shape == (batch * length, vocab_size):
        return "(BT)V"
    if len(shape) == 2 and shape[0] == batch:
        return "BV"
    if len(shape) == 4 and shape[-1] == vocab_size:
        stacked = {"LBTV": shape[1:3], "BTNV": shape[:2], "BNTV": (shape[0], shape[2])}
        return next((layout for layout, axes in stacked.items() if axes == (batch, length)), None)
    if len(shape) != 3 or batch not in shape:
        return None
    if shape[:2] == (batch, length):
        return "BTV"
    if shape[:2] == (length, batch):
        return "TBV"
    if vocab_size is None or vocab_size not in shape or sorted(shape) != sorted((batch, length, vocab_size)):
        return None
    return "".join({batch: "B", length: "T", vocab_size: "V"}[size] for size in shape)
