"""Is the same answer given twice in eval mode, and is dropout live in train mode?"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from utils._random import fixed_random
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.faults import Fault, judged
from utils.checks.inspection import listed, wake_zero_matrices, where
from utils.checks.passage import SAME, Passage, passage, relative_gap
from utils.checks.report import CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, run_model

NAME = "determinism"
BATCH, LENGTH = 2, 8
SURE = 20.0
"""Values that a dropout must be expected to drop before its silence means anything: it drops none with probability e**-20."""
GENERATORS = ("torch", "Python's random", "NumPy's random")
"""Where random numbers of a model come from."""


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Run the same 2 × 8 tokens twice in eval mode and twice in train mode, from different random states."""
    inputs = sampler.inputs(BATCH, sampler.length(LENGTH))
    adapted.eval()
    first, again = _seeded(adapted, inputs, 0), _seeded(adapted, inputs, 1)
    if not torch.isfinite(first.logits).all():
        return CheckResult(NAME, "skip", "The logits are not finite, so they cannot be compared.")
    gap = relative_gap(first.logits, again.logits)
    measured: dict[str, Any] = {"eval_difference": gap, "tolerance": SAME}
    faults = _not_repeatable(adapted, inputs, first, again) if gap > SAME else []
    declared = _declared(adapted.model)
    if not declared:
        fine = "In eval mode the same input gives the same logits; no dropout is declared."
        return judged(NAME, faults, fine, measured)
    moved, dead = _train_twice(adapted, inputs)
    measured |= {"train_difference": moved, "dropout": declared, "dead_dropout": dead}
    faults += _dead(adapted, declared, dead, moved)
    fine = f"In eval mode the same input gives the same logits; in train mode dropout moves them by {moved:.1e}."
    return judged(NAME, faults, fine, measured)


def _seeded(adapted: AdaptedModel, inputs: torch.Tensor, seed: int) -> Passage:
    """One pass with the random numbers that follow a seed."""
    with fixed_random(seed):
        return passage(adapted, inputs)


def _not_repeatable(adapted: AdaptedModel, inputs: torch.Tensor, first: Passage, again: Passage) -> list[Fault]:
    gap = relative_gap(first.logits, again.logits)
    finding = f"In eval mode the same input gives different logits (relative difference {gap:.1e})."
    name = first.first_difference(again)
    place = f"the first module that differs is {where(adapted, name)}" if name else "it happens between the modules"
    if relative_gap(again.logits, _seeded(adapted, inputs, 1).logits) > SAME:
        return [
            Fault(
                "fail",
                finding,
                f"They differ also where the same random numbers are drawn, so {adapted.name} keeps something from one call to "
                f"the next (a cache, a counter, a running mean); {place}.",
                "Let forward depend on its arguments alone: empty the cache at its start, or take the state as an argument.",
            )
        ]
    drawn = [name for name in GENERATORS if _draws_from(adapted, inputs, name)]
    return [
        Fault(
            "fail",
            finding,
            f"Random numbers ({', '.join(drawn) or 'torch'}) are drawn although training is off; {place}.",
            "Use nn.Dropout, or F.dropout(x, p, training=self.training), and draw no random numbers in eval mode.",
        )
    ]


def _draws_from(adapted: AdaptedModel, inputs: torch.Tensor, name: str) -> bool:
    """Whether the logits follow this generator, with the others held still."""

    def moved() -> torch.Tensor:
        with fixed_random(0):
            _seed_one(name, 1)
            return passage(adapted, inputs).logits

    return relative_gap(_seeded(adapted, inputs, 0).logits, moved()) > SAME


def _seed_one(name: str, seed: int) -> None:
    """Seed one of `GENERATORS`; call within `fixed_random`."""
    if name == "torch":
        torch.manual_seed(seed)
    elif name == "NumPy's random":
        np.random.seed(seed)  # noqa: NPY002 - the global state, from which models draw
    else:
        random.seed(seed)


def _declared(model: nn.Module) -> dict[str, float]:
    """Modules that hold a dropout, with its share."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            share = module.p
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            inner = isinstance(module, nn.RNNBase) and module.num_layers < 2  # between layers, so one has none
            share = 0.0 if inner else module.dropout
        else:
            continue
        if 0 < share < 1:
            found[name] = float(share)
    return found


def _train_twice(adapted: AdaptedModel, inputs: torch.Tensor) -> tuple[float, list[str]]:
    """How far two passes in train mode lie apart, and the dropouts that ran and dropped nothing."""
    adapted.train()
    dead: list[str] = []

    def scores(seed: int) -> torch.Tensor:
        with torch.no_grad(), fixed_random(seed):
            return run_model(adapted, inputs).logits

    with _watching_dropout(adapted.model, dead):
        first = scores(0)
    moved = relative_gap(first, scores(1))
    if moved == 0 and wake_zero_matrices(adapted.model):  # a head that starts at zero hides everything
        moved = relative_gap(scores(0), scores(1))
    return moved, dead


@contextlib.contextmanager
def _watching_dropout(model: nn.Module, dead: list[str]) -> Iterator[None]:
    """Within the block, note the dropouts that hand on what they were given, though they should have dropped some of it."""

    def hook_for(name: str) -> object:
        def hook(module: _DropoutNd, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if given and given[0].count_nonzero() * module.p > SURE and torch.equal(given[0], output):
                dead.append(name)

        return hook

    handles = [
        module.register_forward_hook(hook_for(name))  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if isinstance(module, _DropoutNd) and 0 < module.p < 1 and not getattr(module, "inplace", False)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dead(adapted: AdaptedModel, declared: dict[str, float], dead: list[str], moved: float) -> list[Fault]:
    if dead:
        return [
            Fault(
                "warn",
                f"Dropout is declared and drops nothing in train mode: {listed(dead)}.",
                f"{where(adapted, dead[0])} stays in eval mode when the model trains: train() is overridden, or something calls "
                "eval() on it.",
                f"Do not call eval() on {dead[0]}, and let train(mode) pass the mode on to every submodule.",
            )
        ]
    if moved > 0:
        return []
    name, share = next(iter(declared.items()))
    return [
        Fault(
            "warn",
            f"Dropout is declared ({name}, {share:g}) and two passes in train mode are equal: nothing is dropped.",
            f"forward of {adapted.name} never calls {where(adapted, name)}, or drops the result.",
            f"Apply it in forward, x = self.{name}(x), or set its share to 0.",
        )
    ]
