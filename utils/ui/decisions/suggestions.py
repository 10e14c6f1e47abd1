"""Settings that fit a model, its data and this machine, each with its reason. Numbers in, settings out; asks no device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.training.presets import PRESETS

LARGE_PARAMETERS = 100_000_000
"""Parameters from which the preset for large models is right."""
STEP_TOKENS = {"cpu": 4_096, "cuda": 16_384}
"""Tokens of an optimizer step: enough for a steady gradient, and a step still takes a moment only."""
MOST_SAMPLES = 64
"""Samples of a step, however short they are."""
PATIENCE_MINUTES = {"cpu": 20.0, "cuda": 60.0}
"""How long a training that nobody adjusted may take: the first one is there to be looked at."""
OPERATIONS = 6
"""Floating-point operations of a training step for each parameter and token (Kaplan et al. 2020)."""
SPEED = {"cpu": 3e10, "cuda": 1e13}
"""Such operations per second of a usual machine in training: two cores, or a T4 in half precision."""
VALIDATIONS = 5
"""Validations of a run that is shorter than an epoch or as long."""


@dataclass(frozen=True)
class Situation:
    """What the settings depend on.

    Attributes:
        task: of the model's contract. parameters: how many it has.
        length: tokens of a sample. device: "cpu" or "cuda".
    """

    task: str
    parameters: int
    length: int
    device: str = "cpu"


@dataclass(frozen=True)
class Suggestion:
    """A preset, what differs from it, and why.

    Attributes:
        preset: name. settings: setting → value. reasons: setting → why, for people; "preset" among them.
    """

    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


def suggest_preset(situation: Situation) -> tuple[str, str]:
    """The preset that fits, and why."""
    if situation.task in ("classification", "vision"):
        return situation.task, f"the model is for {situation.task}"
    words = f"{_short(situation.parameters)} parameters"
    if situation.parameters >= LARGE_PARAMETERS:
        return "large", f"{words}: a model of {_short(LARGE_PARAMETERS)} or more"
    return "standard", f"{words}: a model that learns well from scratch"


def suggest(situation: Situation, preset: str | None = None) -> Suggestion:
    """Settings for a situation.

    Args:
        situation: model and machine.
        preset: the one that the person chose; None takes the one that fits.

    Example:
        >>> suggest(Situation("lm", 3_000_000, 256)).settings["batch_size"]
        16
    """
    fitting, why = suggest_preset(situation)
    name = preset or fitting
    reasons = {"preset": why if name == fitting else f"your choice ({fitting} would fit: {why})"}
    if name == "fast_dev":  # a trial of the machinery takes its own small numbers
        return Suggestion(name, {}, reasons)
    settings: dict[str, Any] = {}
    for setting, value, reason in (*_batch(situation, name), *_rate(situation)):
        settings[setting], reasons[setting] = value, reason
    return Suggestion(name, settings, reasons)


def suggest_end(situation: Situation, epochs: int, tokens: float, steps_per_epoch: int) -> tuple[dict[str, Any], str]:
    """Where the training ends so that it takes no longer than a first one should, and why.

    Reckoned from sizes and not from a clock: a run that goes on tomorrow must find the settings that it began with.

    Args:
        situation: model and machine.
        epochs: of the preset; never more than these.
        tokens: of one pass over the training data.
        steps_per_epoch: of the same.

    Returns:
        `epochs`, or `max_steps` where even one epoch takes too long, with `val_every_n_steps` where epochs are few; and why.
    """
    patience = PATIENCE_MINUTES[situation.device]
    minutes = OPERATIONS * situation.parameters * tokens / SPEED[situation.device] / 60
    fitting = int(patience / minutes) if minutes > 0 else epochs
    if fitting >= epochs:
        return _validated(
            {"epochs": epochs}, epochs, steps_per_epoch
        ), f"{epochs} passes over the data, as in the preset"
    if fitting >= 1:
        reason = f"{fitting} of {epochs} passes take about {patience:.0f} minutes on a usual machine of this kind"
        return _validated({"epochs": fitting}, fitting, steps_per_epoch), reason
    steps = max(1, int(steps_per_epoch * patience / minutes))
    reason = (
        f"{steps:,} steps, {steps / steps_per_epoch:.0%} of the data, take about {patience:.0f} minutes on a usual machine of this "
        "kind; set epochs to train on all of it"
    )
    return {"epochs": 1, "max_steps": steps, "val_every_n_steps": max(1, steps // VALIDATIONS)}, reason


def _validated(settings: dict[str, Any], epochs: int, steps_per_epoch: int) -> dict[str, Any]:
    """With validations inside the epochs, where their ends would give too few to look at."""
    if epochs >= VALIDATIONS:
        return settings
    return {**settings, "val_every_n_steps": max(1, epochs * steps_per_epoch // VALIDATIONS)}


def _batch(situation: Situation, preset: str) -> list[tuple[str, Any, str]]:
    """Samples of a step: the preset's, or as many as a step's worth of tokens holds on this machine."""
    if situation.task not in ("lm", "masked") or preset == "large":
        return []
    wanted = STEP_TOKENS[situation.device] / situation.length
    size = min(MOST_SAMPLES, 2 ** max(0, round(math.log2(max(wanted, 1)))))
    tokens = size * situation.length
    return [
        ("batch_size", size, f"{size} × {situation.length:,} = {tokens:,} tokens per step, a good size on this machine")
    ]


def _rate(situation: Situation) -> list[tuple[str, Any, str]]:
    """The rate for language models of that size (Kaplan et al. 2020, appendix D.6), to one digit."""
    if situation.task not in ("lm", "masked"):
        return []
    exact = 0.003239 - 0.0001395 * math.log(max(situation.parameters, 1))
    rate = max(1e-4, min(2e-3, float(f"{exact:.0e}")))
    return [("learning_rate", rate, f"{_short(situation.parameters)} parameters: smaller models bear higher rates")]


def presets() -> list[tuple[str, str]]:
    """Name and purpose of each preset, in the order in which they are offered."""
    return [(preset.name, preset.purpose) for preset in PRESETS.values()]


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"
