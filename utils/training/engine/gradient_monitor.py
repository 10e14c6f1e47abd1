"""The gradients of a run: their norm at every optimizer step, and at intervals the health of every layer, with advice.

Reads between the backward pass and clipping: Lightning calls `on_before_optimizer_step` after the scaler of 16-mixed has
divided its factor out, before it clips, and long before gradients are cleared. Changes no gradient. Tier 1 looks at a fresh
model once (`checks.gradients`, whose thresholds between layers are used here); this file looks at one in training.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer

from utils._tables import html_table, text_table
from utils.checks.gradients import MEDIAN_RATIO, SIBLING_RATIO
from utils.checks.inspection import role
from utils.training.engine.processes import ALONE, Processes
from utils.training.engine.sharding import in_shards, local

logger = logging.getLogger(__name__)

EVERY = 50
"""Optimizer steps between looks at every layer."""
GROUP = 64
"""Norms that wait on the device before they are read together: each read makes a GPU wait."""
EXPLODING_RATIO = 100.0
"""A layer whose gradient is this many times its own median of before explodes. Our choice: clipping to a norm of 1 makes
such a step a hundredth of its length, so that little else is learnt from it."""
PAST_LOOKS = 20
"""Looks of before that a layer is compared with."""
_LEAST_LOOKS = 3

STATUSES = ("healthy", "vanishing", "exploding", "missing", "zero", "non-finite")


@dataclass(frozen=True)
class GradientHealth:
    """The gradient of one layer at one optimizer step, before clipping.

    Attributes:
        layer: name of the module that holds the parameters.
        norm: L2 norm over its parameters; rms: root mean square over their elements.
        share: part of the squared norm of all gradients, 0 to 1; NaN where they are not finite.
        status: one of `STATUSES`. "missing": no gradient at all, "zero": exactly zero.
        advice: what to change, in words; empty for a healthy layer.
        step: optimizer steps done, this one included.
    """

    layer: str
    norm: float
    rms: float
    share: float
    status: str
    advice: str
    step: int


@dataclass(frozen=True)
class LayerNorms:
    """What was read of one layer: all that `judge` knows.

    Attributes:
        norm: L2 norm; None where no parameter has a gradient.
        size: elements of the parameters that have one.
        is_matrix: whether it holds a matrix, the only ones that are compared with each other.
        shapes: shapes of its parameters, which siblings of a stack share.
    """

    norm: float | None
    size: int
    is_matrix: bool
    shapes: tuple[tuple[int, ...], ...]

    @property
    def rms(self) -> float:
        """Root mean square of the gradient; NaN where there is none."""
        return math.nan if self.norm is None else self.norm / math.sqrt(max(self.size, 1))


def judge(
    layers: Mapping[str, LayerNorms], past: Sequence[Mapping[str, float]] = (), step: int = 0, scaled: bool = False
) -> list[GradientHealth]:
    """Status and advice for each layer.

    Args:
        layers: what was read, in the order of the model.
        past: root mean squares by layer at earlier looks.
        step: optimizer step of the look.
        scaled: whether a gradient scaler is at work, whose first steps overflow by design.
    """
    known = {name: item for name, item in layers.items() if item.norm is not None}
    total = sum(item.norm * item.norm for item in known.values() if item.norm is not None)
    compared = _compare(known)
    found = []
    for name, item in layers.items():
        status, advice = _status(name, item, scaled) or compared.get(name) or _against_past(name, item.rms, past)
        share = math.nan if not math.isfinite(total) else (item.norm or 0.0) * (item.norm or 0.0) / (total or 1.0)
        found.append(GradientHealth(name, item.norm or 0.0, item.rms, share, status, advice, step))
    return found


def _status(name: str, item: LayerNorms, scaled: bool) -> tuple[str, str] | None:
    """What the layer shows by itself, or None."""
    if item.norm is None:
        return "missing", (
            f"{name} gets no gradient: the loss does not depend on it. Call it in forward, or freeze it with "
            "requires_grad_(False); look for .detach(), torch.no_grad() or a conversion to whole numbers on its way."
        )
    if not math.isfinite(item.norm):
        first = " A few such steps at the start are the scaler finding its scale." if scaled else ""
        return "non-finite", (
            f"the gradient of {name} is {item.norm}: set precision='32-true' or 'bf16-mixed', lower learning_rate, and look "
            f"for divisions, logarithms and square roots of zero in it or in what follows it.{first}"
        )
    if item.norm == 0:
        return "zero", (
            f"the gradient of {name} is exactly zero: its output is multiplied by zero, or a ReLU behind it is never open. "
            "Initialise what follows it with small random numbers, or use GELU."
        )
    return None


def _compare(layers: Mapping[str, LayerNorms]) -> dict[str, tuple[str, str]]:
    """Layers that stand out against others of the same step."""
    sizes = {n: item.rms for n, item in layers.items() if item.is_matrix and item.norm and math.isfinite(item.norm)}
    found: dict[str, tuple[str, str]] = {}
    stacks: dict[tuple[str, tuple[tuple[int, ...], ...]], list[str]] = {}
    for name in sizes:
        stacks.setdefault((role(name), layers[name].shapes), []).append(name)
    for names in stacks.values():
        found.update(_uneven(names, sizes))
    if len(sizes) > 1:
        median = statistics.median(sizes.values())
        for name, size in sizes.items():
            if size < MEDIAN_RATIO * median:
                found.setdefault(name, ("vanishing", _faint_advice(name, size / median)))
    return found


def _uneven(names: list[str], sizes: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """Siblings of a stack, in the order of the model, whose gradients differ too much.

    Gradients flow from the last layer to the first: where the first ones have less, they vanish on the way; where they have
    more, they explode.
    """
    weakest, strongest = min(names, key=sizes.__getitem__), max(names, key=sizes.__getitem__)
    if sizes[strongest] <= SIBLING_RATIO * sizes[weakest]:
        return {}
    if names.index(weakest) < names.index(strongest):
        weak = [name for name in names if sizes[name] * SIBLING_RATIO < sizes[strongest]]
        return {
            name: ("vanishing", _vanishing_advice(name, sizes[strongest] / sizes[name], strongest)) for name in weak
        }
    strong = [name for name in names if sizes[name] > SIBLING_RATIO * sizes[weakest]]
    return {name: ("exploding", _growing_advice(name, sizes[name] / sizes[weakest], weakest)) for name in strong}


def _vanishing_advice(name: str, ratio: float, strongest: str) -> str:
    return (
        f"the gradient of {name} is {ratio:.0e} times weaker than that of {strongest}: it hardly learns. Add a residual "
        "connection around each block and a norm in front of it, and use GELU in place of sigmoid or tanh."
    )


def _growing_advice(name: str, ratio: float, weakest: str) -> str:
    return (
        f"the gradient of {name} is {ratio:.0e} times that of {weakest}: it grows on its way back. Add a norm in front of each "
        "block, draw weights with a standard deviation of 0.02, and set gradient_clip_norm=1.0."
    )


def _faint_advice(name: str, ratio: float) -> str:
    return (
        f"the gradient of {name} is {ratio:.0e} of the median matrix, below the rounding of float32: it does not learn. Look at "
        "how its output enters the model: a factor close to zero, a softmax or sigmoid that is saturated."
    )


def _against_past(name: str, rms: float, past: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """Whether a layer stands out against its own past."""
    before = [look[name] for look in past if math.isfinite(look.get(name, math.nan)) and look[name] > 0]
    if len(before) >= _LEAST_LOOKS and rms > EXPLODING_RATIO * statistics.median(before):
        return "exploding", (
            f"the gradient of {name} is {rms / statistics.median(before):.0f} times its median of before: lower learning_rate, "
            "lengthen warmup_ratio, and set gradient_clip_norm=1.0."
        )
    return "healthy", ""


class GradientMonitor(pl.Callback):
    """Keeps the norm of all gradients at every optimizer step, and looks at every layer now and then.

    Nothing is read from a GPU step by step: norms stay there as numbers of one element and come over in groups.

    Attributes:
        total: norm of all gradients at the newest step as a tensor on its device; None before the first one. Clipping can
            use it instead of computing it again.

    Args:
        every: optimizer steps between looks at every layer; the first step is looked at, too.
        processes: those that train together.

    Example:
        >>> monitor = GradientMonitor()
        >>> pl.Trainer(callbacks=[monitor], gradient_clip_val=1.0).fit(lit, loader)
        >>> monitor.gradient_norms[-1], [item.advice for item in monitor.health if item.status != "healthy"]
    """

    def __init__(self, every: int = EVERY, processes: Processes = ALONE) -> None:
        self.every, self._processes = every, processes
        self.total: torch.Tensor | None = None
        self._norms: list[float] = []
        self._unread: list[torch.Tensor] = []
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self._look: tuple[int, list[int], torch.Tensor] | None = (
            None  # step, which parameters, their norms on the device
        )
        self._past: list[dict[str, float]] = []
        self._health: list[GradientHealth] = []
        self._warned: set[tuple[str, str]] = set()
        self._scaled = False

    # ---- what was seen ----------------------------------------------------------------------------------------------
    @property
    def gradient_norms(self) -> list[float]:
        """L2 norm of all gradients before clipping, one per optimizer step. Reading it makes a GPU wait."""
        self._read()
        return self._norms

    @property
    def health(self) -> list[GradientHealth]:
        """Every layer at the newest look, in the order of the model. Reading it makes a GPU wait."""
        self._read()
        return self._health

    @property
    def problems(self) -> list[GradientHealth]:
        """Layers at the newest look that are not healthy."""
        return [item for item in self.health if item.status != "healthy"]

    def clipped_share(self, clip_norm: float) -> float:
        """Share of the optimizer steps whose gradients were longer than `clip_norm`; 0 where nothing is clipped."""
        norms = self.gradient_norms
        return sum(norm > clip_norm for norm in norms) / len(norms) if norms and clip_norm > 0 else 0.0

    def summary(self) -> str:
        """The newest look in a table of text, troubled layers first."""
        return text_table(_COLUMNS, self._rows(), title=self._title())

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows())

    def _title(self) -> str:
        norms = self.gradient_norms
        newest = f"norm {norms[-1]:.3g} at step {len(norms):,}" if norms else "nothing seen yet"
        return f"Gradients: {newest}, {len(self.problems)} of {len(self.health)} layers need a look"

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        ranked = sorted(self.health, key=lambda item: item.status == "healthy")
        return [(i.layer, f"{i.norm:.3g}", f"{i.share:.1%}", i.status, i.advice) for i in ranked]

    # ---- what Lightning tells ----------------------------------------------------------------------------------------
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch(trainer, pl_module)  # Lightning announces no epoch where a run goes on in the middle of one

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch(trainer, pl_module)

    def _watch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._parameters = [(_short(n), p) for n, p in pl_module.named_parameters() if p.requires_grad]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        found = [(place, p.grad) for place, (_, p) in enumerate(self._parameters) if p.grad is not None]
        places = [place for place, _ in found]
        norms = self._norms_of([gradient for _, gradient in found], pl_module.device)
        self.total = torch.linalg.vector_norm(norms)
        self._unread.append(self.total)
        step = len(self._norms) + len(self._unread)
        if step % self.every == 0 or step == 1:
            self._read_look()
            self._look = (step, places, norms)
        if len(self._unread) >= GROUP:
            self._read()

    def _norms_of(self, gradients: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        """L2 norm of each gradient, (N,), over the shards of all processes where there are any."""
        if not in_shards(gradients):
            return _norms(gradients, device)
        return self._processes.sum(_norms(local(gradients), device).square()).sqrt()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read()

    # ---- reading ----------------------------------------------------------------------------------------------------
    def _read(self) -> None:
        """Bring norms over from the device, together."""
        if self._unread:
            self._norms.extend(torch.stack(self._unread).tolist())
            self._unread = []
        self._read_look()

    def _read_look(self) -> None:
        if self._look is None:
            return
        (step, places, norms), self._look = self._look, None
        by_place = dict(zip(places, norms.tolist()))
        layers = _layers(self._parameters, by_place)
        self._health = judge(layers, self._past, step, self._scaled)
        self._past = [*self._past, {name: item.rms for name, item in layers.items()}][-PAST_LOOKS:]
        for item in self._health:
            if item.status != "healthy" and (item.layer, item.status) not in self._warned:
                self._warned.add((item.layer, item.status))
                logger.warning("step %d: %s", step, item.advice)

    # ---- a run that goes on -----------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "gradient_norms": list(self._norms),
            "past": [dict(look) for look in self._past],
            "health": [vars(item).copy() for item in self._health],
            "warned": sorted(map(list, self._warned)),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._norms, self._unread, self._look = [float(norm) for norm in state_dict["gradient_norms"]], [], None
        self._past = [dict(look) for look in state_dict["past"]]
        self._health = [GradientHealth(**item) for item in state_dict["health"]]
        self._warned = {(layer, status) for layer, status in state_dict["warned"]}


_COLUMNS = ("layer", "norm", "share", "status", "advice")


def _norms(gradients: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """L2 norm of each gradient, (N,), in float32 at least: a norm in half precision overflows."""
    if not gradients:
        return torch.zeros(0, device=device)
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    halves = any(gradient.dtype in (torch.float16, torch.bfloat16) for gradient in dense)
    norms = torch._foreach_norm(dense, 2, dtype=torch.float32 if halves else None)
    return torch.stack([norm.to(device) for norm in norms])


def _short(name: str) -> str:
    """A parameter's name as its model spells it, without what Lightning, the adapter and torch.compile put in front."""
    return name.replace("_orig_mod.", "").removeprefix("adapted.").removeprefix("model.")


def _layers(parameters: list[tuple[str, nn.Parameter]], norms: Mapping[int, float]) -> dict[str, LayerNorms]:
    """Norms of parameters put together by the module that holds them."""
    by_layer: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(parameters):
        by_layer.setdefault(name.rpartition(".")[0] or name, []).append(place)
    found = {}
    for layer, places in by_layer.items():
        seen = [place for place in places if place in norms]
        squares = sum(norms[place] * norms[place] for place in seen)
        shapes = tuple(tuple(parameters[place][1].shape) for place in places)
        found[layer] = LayerNorms(
            norm=math.sqrt(squares) if seen else None,
            size=sum(parameters[place][1].numel() for place in seen),
            is_matrix=any(len(shape) >= 2 for shape in shapes),
            shapes=shapes,
        )
    return found
