"""What an adapted model returns, where a foreign output keeps its logits, and the one place where labels are shifted.

Knows tensors and containers; leaves calling the model to `model_adapter` and the choice of objective to `training`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F

IGNORED_LABEL = -100
"""Label of positions that carry no loss (padding), as in `torch.nn.functional.cross_entropy`."""

LOGITS_NAMES = ("logits", "lm_logits", "prediction_logits", "output", "outputs", "predictions", "scores", "y", "x")
"""Names under which models return logits, the usual ones first."""

_BESIDE = ("aux", "hidden", "embed", "attn", "attention", "pool", "state", "mem", "weight", "router", "draft", "past")
"""Parts of names under which models return what is not their answer."""

_LAYOUTS = {"BTV": (0, 1, 2), "TBV": (1, 0, 2), "BVT": (0, 2, 1), "VBT": (1, 2, 0), "TVB": (2, 0, 1), "VTB": (2, 1, 0)}


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


def aligned(logits: torch.Tensor, labels: torch.Tensor, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores beside the labels that they are held against. The only place of the package where labels are shifted.

    Args:
        logits: (B, T, V), or (B, V) for one row of scores per example.
        labels: (B, T) or (B,) int64; `IGNORED_LABEL` carries no loss.
        shift: 1 where position t scores token t + 1 of unshifted labels, else 0.

    Returns:
        Scores (B, T - shift, V) and labels (B, T - shift).
    """
    return (logits[:, :-shift], labels[:, shift:]) if shift else (logits, labels)


def counted(labels: torch.Tensor, shift: int) -> torch.Tensor:
    """How many labels carry loss, as a scalar on their device; `shift` as for `aligned`."""
    return ((labels[:, shift:] if shift else labels) != IGNORED_LABEL).sum()


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of predicting token t + 1 from position t.

    Args:
        logits: (B, T, V), position t scores token t + 1.
        labels: (B, T) int64, unshifted: `labels[:, t]` is the token at position t; `IGNORED_LABEL` carries no loss.
        reduction: "mean" over the labels that count (0 where none counts), "sum", or "none" for (B, T - 1).
        label_smoothing: share of the target's probability that is spread over all classes.

    Returns:
        Nats, computed in float32, or in float64 where the logits are.
    """
    return cross_entropy(*aligned(logits, labels, 1), reduction, label_smoothing)


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats without any shift: logits (B, T, V) or (B, V) against labels (B, T) or (B,).

    The other arguments are those of `next_token_loss`.
    """
    flat = _precise(logits).reshape(
        -1, logits.shape[-1]
    )  # rows of scores: 2.6 times as fast on CPUs as an axis in the middle
    losses = F.cross_entropy(
        flat, labels.reshape(-1), ignore_index=IGNORED_LABEL, reduction="none", label_smoothing=label_smoothing
    ).view(labels.shape)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (labels != IGNORED_LABEL).sum().clamp(min=1)


def _precise(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: sums of half-precision losses would be rounded away."""
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True)
class LogitsSelector:
    """Where a model's output keeps its logits, and in which order their axes stand.

    Attributes:
        path: keys, indices or attribute names that lead from the output to the tensor; empty where the output is it.
        layout: order of the axes batch, time and vocabulary as the model gives them, e.g. "BTV" or "TBV"; "BV" for a
            model that gives one row of scores per sequence (classification); "(BT)V" and "(TB)V" where two axes are one;
            "LBTV" for the scores of several layers, of which the last counts; "BTNV" and "BNTV" for scores of several
            tokens ahead, of which the next counts.
    """

    path: tuple[str | int, ...] = ()
    layout: str = "BTV"

    def __call__(self, output: Any, batch: int | None = None) -> torch.Tensor:
        """Return the logits as (B, T, V), or (B, V) for classification. `batch` is needed where two axes are one."""
        value: torch.Tensor = follow(output, self.path)
        if self.layout in ("BTV", "BV"):
            return value
        if self.layout == "LBTV":
            return value[-1]
        if self.layout in ("BTNV", "BNTV"):
            return value.select(self.layout.index("N"), 0)
        if self.layout == "(BT)V":
            return value.unflatten(0, (batch or 1, -1))
        if self.layout == "(TB)V":
            return value.unflatten(0, (-1, batch or 1)).transpose(0, 1)
        return value.permute(_LAYOUTS[self.layout])

    def width(self, shape: tuple[int, ...]) -> int:
        """Number of scores in a tensor of this layout and shape."""
        return shape[self.layout.index("V")] if self.layout in _LAYOUTS else shape[-1]


def follow(output: Any, path: tuple[str | int, ...]) -> Any:
    """What lies at the end of a path of keys, indices and attribute names."""
    value = output
    for step in path:
        value = getattr(value, step) if isinstance(step, str) and not isinstance(value, Mapping) else value[step]
    return value


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
