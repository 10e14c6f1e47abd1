"""A stand-in for training whose best settings are known: losses as a training would give them, without one.

The curve falls from `FIRST` to a final loss that is lowest at `BEST`; slower where the learning
rate is low, so that the order of early losses is not that of the final ones; with a little noise on every validation.
"""

from __future__ import annotations

import math
import random

from utils.training.search_space import SearchSpace
from utils.training.search_study import PLACES
from utils.training.search_trial import RunningTrial, UnfitError
from utils.training.training_config import TrainingConfig

SPACE = SearchSpace({"learning_rate": (1e-5, 1e-1), "weight_decay": (1e-4, 1.0)})
BEST = {"learning_rate": 2e-3, "weight_decay": 0.05}
LOWEST, FIRST, NOISE = 2.0, 6.0, 0.01
"""Nats: final loss at the best settings, loss before the first step, and standard deviation of a validation."""

REGION = 0.06
"""Nats above the lowest final loss up to which settings count as those of the best region: about a twentieth of the space."""

DIVERGES = 3e-2
"""Learning rate from which losses are not finite."""


def distance(settings: TrainingConfig, name: str) -> float:
    """Decades between a setting and its best value."""
    return abs(math.log10(getattr(settings, name) / BEST[name]))


def final_loss(settings: TrainingConfig) -> float:
    """Where a training with these settings ends, without noise."""
    rate, decay = distance(settings, "learning_rate"), distance(settings, "weight_decay")
    return LOWEST + 0.5 * rate**2 + 0.1 * decay**2


def found(settings: TrainingConfig) -> bool:
    """Whether settings lie in the known best region."""
    return final_loss(settings) <= LOWEST + REGION


class Standin:
    """The objective; counts its validations, which stand for epochs."""

    def __init__(self, places: int = PLACES) -> None:
        self.places, self.done = places, 0

    def __call__(self, trial: RunningTrial) -> float:
        settings = trial.settings
        noise = random.Random(repr((settings.learning_rate, settings.weight_decay)))
        speed = 5 * min(1.0, settings.learning_rate / BEST["learning_rate"]) ** 0.2
        loss = math.nan
        for place in range(1, self.places + 1):
            self.done += 1
            if settings.learning_rate > DIVERGES:
                raise UnfitError("its losses are not finite")
            final = final_loss(settings)
            loss = final + (FIRST - final) * math.exp(-speed * place / self.places) + noise.gauss(0, NOISE)
            trial.report(place, loss, last=place == self.places)
        return loss
