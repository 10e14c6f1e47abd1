"""Which units never fire, and which are stuck at a bound? Looks at what activation functions give over a larger sample."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import activation
from torch.overrides import TorchFunctionMode

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.inspection import listed, where
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "dead neurons"
BATCHES, BATCH, LENGTH = 4, 4, 64
SILENT = 0.01
"""A unit that never gives more than this share of its layer's root mean square is dead: GELU and SiLU are never exactly 0."""
NEAR_BOUND = 0.01
"""Distance from a bound, relative to the range, at which tanh and sigmoid are saturated: their slope there is below 4%."""
MOST = 0.25
"""Share of a layer's units from which on dead or saturated ones are worth a warning. Our own measurement: fresh models have
none; Voita et al. 2023 ("Neurons in large language models: dead, n-gram, positional") find 70% in early layers of trained OPT."""

FUNCTIONS: dict[Callable[..., Any], str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    torch.Tensor.relu: "relu",
    torch.Tensor.relu_: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.mish: "mish",
    F.elu: "elu",
    F.leaky_relu: "leaky_relu",
    torch.tanh: "tanh",
    torch.Tensor.tanh: "tanh",
    F.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    torch.Tensor.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
}
BOUNDS = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
_CLASS = re.compile(r"relu|gelu|silu|swish|mish|elu\b|tanh|sigmoid|activation$", re.IGNORECASE)
_NO_UNITS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU)


@dataclass
class Activity:
    """What one activation gave so far, per unit.

    Attributes:
        kind: name of the function.
        largest: largest absolute value, (units,).
        stuck: how often the unit was at a bound, (units,).
        fired: how often it was above 0.
        squares: sum of all squares.
        seen: values per unit.
    """

    kind: str
    largest: torch.Tensor
    stuck: torch.Tensor
    fired: float = 0.0
    squares: float = 0.0
    seen: int = 0

    def add(self, values: torch.Tensor) -> None:
        """Take in (N, units)."""
        self.largest = torch.maximum(self.largest, values.abs().amax(0))
        self.fired += float((values > 0).sum())
        self.squares += float(values.double().square().sum())
        self.seen += len(values)
        if self.kind in BOUNDS:
            low, high = BOUNDS[self.kind]
            margin = NEAR_BOUND * (high - low)
            self.stuck += ((values < low + margin) | (values > high - margin)).sum(0)

    def row(self, name: str) -> dict[str, Any]:
        """Counts and shares in plain types."""
        units = len(self.largest)
        typical = (self.squares / max(1, self.seen * units)) ** 0.5
        dead = int((self.largest <= SILENT * typical).sum())
        saturated = int((self.stuck == self.seen).sum()) if self.kind in BOUNDS else 0
        row: dict[str, Any] = {
            "layer": name,
            "kind": self.kind,
            "units": units,
            "dead": dead,
            "dead share": dead / units,
        }
        return row | {"saturated share": saturated / units, "above 0": self.fired / max(1, self.seen * units)}


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Run 1024 random tokens and count, for each activation, units that are dead or saturated on all of them."""
    adapted.eval()
    length = sampler.length(LENGTH)
    with torch.no_grad(), activations(adapted.model, adapted.contract.task == "vision") as found:
        for seed in range(BATCHES):
            run_model(adapted, sampler.inputs(BATCH, length, seed=seed))
    if not found:
        return CheckResult(NAME, "skip", f"No activation function was seen in {adapted.name}.")
    rows = [seen.row(name) for name, seen in found.items()]
    units, dead = sum(row["units"] for row in rows), sum(row["dead"] for row in rows)
    measured = {TABLE: rows, "units": units, "dead": dead, "inputs": BATCHES * BATCH * length}
    bad = [row for row in rows if max(row["dead share"], row["saturated share"]) >= MOST]
    if bad:
        worst = max(bad, key=lambda row: max(row["dead share"], row["saturated share"]))
        state = "dead" if worst["dead share"] >= worst["saturated share"] else "saturated"
        return CheckResult(
            NAME,
            "warn",
            f"{len(bad)} of {len(rows)} activations have many dead or saturated units: {listed([row['layer'] for row in bad])}; "
            f"{worst[state + ' share']:.0%} of {worst['layer']} are {state}.",
            f"What reaches {where(adapted, worst['layer'].split(' ')[0])} is far below zero, or far out on one side, for every "
            "token: such units pass no gradient, so they stay as they are.",
            "Normalise what comes before it and start its bias at zero; GELU and SiLU let units come back, ReLU does not.",
            measured,
        )
    return CheckResult(
        NAME,
        "pass",
        f"{dead} of {units:,} units in {len(rows)} activations are dead over {measured['inputs']} inputs.",
        measured=measured,
    )


@contextlib.contextmanager
def activations(model: nn.Module, images: bool = False) -> Iterator[dict[str, Activity]]:
    """Within the block, gather what activations give, by place: modules, and functions by the module that calls them.

    Args:
        model: the module that is run.
        images: whether the units of (B, C, H, W) are its channels.
    """
    found: dict[str, Activity] = {}
    watch = _Functions(found, images)
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(watch.entering(name, _is_activation(module))))
        handles.append(module.register_forward_hook(watch.leaving, always_call=True))
    try:
        with watch:
            yield found
    finally:
        for handle in handles:
            handle.remove()


class _Functions(TorchFunctionMode):
    """Knows which module is running, and sees the functions that it calls."""

    def __init__(self, found: dict[str, Activity], images: bool) -> None:
        super().__init__()
        self.found, self.images = found, images
        self.running: list[tuple[str, bool]] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        inside = any(is_activation for _, is_activation in self.running)
        if (kind := FUNCTIONS.get(function)) is not None and not inside:
            place = self.running[-1][0] if self.running else ""
            self.note(f"{place} ({kind})".strip(), kind, result)
        return result

    def entering(self, name: str, is_activation: bool) -> Callable[..., None]:
        """The hook that runs before the module of that name."""
        return lambda module, given: self.running.append((name, is_activation))

    def leaving(self, module: nn.Module, given: Any, output: Any) -> None:
        """The hook that runs after a module."""
        name, is_activation = self.running.pop()
        if is_activation and isinstance(output, torch.Tensor) and not any(outer for _, outer in self.running):
            self.note(name, _kind_of(module), output)

    def note(self, place: str, kind: str, values: torch.Tensor) -> None:
        """Add what an activation gave."""
        if not isinstance(values, torch.Tensor) or values.dim() < 2 or not values.is_floating_point():
            return
        if self.images and values.dim() == 4:
            values = values.movedim(1, -1)
        rows = values.detach().reshape(-1, values.shape[-1]).float()
        if place not in self.found or len(self.found[place].largest) != rows.shape[1]:
            zeros = torch.zeros(rows.shape[1], device=rows.device)
            self.found[place] = Activity(kind, zeros, zeros.clone())
        self.found[place].add(rows)


def _is_activation(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, _NO_UNITS) or any(True for _ in module.children()):
        return False
    known = kind.__module__ == activation.__name__
    return known or (_CLASS.search(kind.__name__) is not None and not any(True for _ in module.parameters()))


def _kind_of(module: nn.Module) -> str:
    name = type(module).__name__.lower()
    return next((kind for kind in ("hardtanh", "tanhshrink", *BOUNDS, "relu", "gelu", "silu") if kind in name), name)
