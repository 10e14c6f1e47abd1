"""What a search is worth, over seeds: `python -m tests.training.search_table [--seeds 10]`.

Each row is one way of searching the task of `search_task`, whose best settings are known, 20 trials each, through the study,
journal and locks of a real search. Takes a minute or two.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import optuna

from tests.training.search_task import LOWEST, SPACE, Standin, final_loss, found
from utils.training import search_study
from utils.training.search_study import PLACES, SearchStudy
from utils.training.training_config import TrainingConfig

TRIALS = 20


@dataclass(frozen=True)
class Outcome:
    """One search: whether it found the best region, how far above the lowest loss it ended, and validations it took."""

    found: bool
    excess: float
    validations: int


@dataclass(frozen=True)
class Row:
    """One way of searching, over seeds."""

    name: str
    outcomes: tuple[Outcome, ...]

    @property
    def found(self) -> int:
        return sum(item.found for item in self.outcomes)

    @property
    def excess(self) -> float:
        return statistics.mean(item.excess for item in self.outcomes)

    @property
    def validations(self) -> float:
        return statistics.mean(item.validations for item in self.outcomes)

    def __str__(self) -> str:
        share = self.validations / (TRIALS * PLACES)
        return (
            f"{self.name:<44} best region in {self.found:>2} of {len(self.outcomes):<3} mean loss {self.excess:.4f} above the "
            f"lowest, {self.validations:5.1f} validations ({share:.0%} of {TRIALS * PLACES})"
        )


def at_random(seed: int, number: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=1000 * seed + number)


def searched(folder: Path, seed: int, pruning: bool, sampler: Callable[..., Any] = search_study.sampler) -> Outcome:
    """One search with a seed."""
    with mock.patch.object(search_study, "sampler", sampler):
        study = SearchStudy(folder, SPACE, TrainingConfig(), seed=seed, pruning=pruning)
        study.put_in_line(SPACE.start(TrainingConfig()), "the usual settings, for every way of searching")
        task = Standin()
        study.run(task, TRIALS)
    best = study.best_config()
    return Outcome(found(best), final_loss(best) - LOWEST, task.done)


def table(seeds: int) -> tuple[Row, Row, Row]:
    """Random search, the search without pruning, and the search."""
    ways = (
        ("random search", False, at_random),
        ("TPE, every trial to its end", False, search_study.sampler),
        ("TPE, successive halving (what search does)", True, search_study.sampler),
    )
    with tempfile.TemporaryDirectory() as folder:
        first, second, third = (
            Row(name, tuple(searched(Path(folder) / f"{place}-{seed}", seed, pruning, way) for seed in range(seeds)))
            for place, (name, pruning, way) in enumerate(ways)
        )
    return first, second, third


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    rows = table(parser.parse_args().seeds)
    saved = 1 - rows[2].validations / rows[1].validations
    print(*rows, f"pruning saves {saved:.0%} of the validations", sep="\n")  # noqa: T201 - a program for the terminal


if __name__ == "__main__":
    main()
