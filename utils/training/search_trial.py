"""One trial of a search while it runs: its settings, what it reports, and when it ends. Knows numbers and a clock, no trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from utils.training.training_config import TrainingConfig


class TrialEndedError(Exception):
    """A trial ends before its training does; the message says why. What trains lets it pass."""


class PrunedError(TrialEndedError):
    """The trial is worse than the others were at the same place."""


class UnfitError(TrialEndedError):
    """These settings cannot be trained: the losses diverge, or the memory does not suffice. The search keeps away from them."""


class TimeUpError(TrialEndedError):
    """The time of the search is over; the trial goes on when the search does."""


class Objective(Protocol):
    """What a search minimises: trains with `trial.settings`, calls `trial.report`, returns the last validation loss."""

    def __call__(self, trial: RunningTrial) -> float: ...


class RunningTrial:
    """What a trial's training sees of the search.

    Args:
        number: of the trial in its study, from 0.
        run_name: name of its run's folder; that of an earlier attempt, where this one goes on with it.
        settings: of the training.
        attempt: 1, or how often it has been begun.
        reports: takes (place, loss), and answers whether the trial is worth going on.
        deadline: time of `clock` at which the search ends; None where it has all the time.
        anything_done: whether some trial of the study came to its end.
        tell: shown in the progress display.
        clock: monotonic seconds.

    Example:
        >>> def objective(trial):
        ...     for place in range(1, 9):
        ...         loss = train_a_bit(trial.settings)
        ...         trial.report(place, loss, last=place == 8)
        ...     return loss
    """

    def __init__(
        self,
        number: int,
        run_name: str,
        settings: TrainingConfig,
        *,
        attempt: int = 1,
        reports: Callable[[int, float], bool] = lambda place, loss: True,
        deadline: float | None = None,
        anything_done: bool = False,
        tell: Callable[[str], None] = lambda note: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number, self.run_name, self.settings, self.attempt = number, run_name, settings, attempt
        self._reports, self._deadline, self._anything_done = reports, deadline, anything_done
        self._clock, self.tell = clock, tell

    @property
    def seconds_left(self) -> float:
        """Seconds until the search ends; infinite where nobody set a time."""
        return math.inf if self._deadline is None else self._deadline - self._clock()

    def report(self, place: int, loss: float, last: bool = False) -> None:
        """Tell the search a validation loss.

        Args:
            place: number of the validation, from 1: trials are compared at the same place.
            loss: nats per label.
            last: whether the training has come to its end.

        Raises:
            PrunedError: the trial is not worth going on. UnfitError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise UnfitError(f"its validation loss is {loss} at validation {place}")
        if not self._reports(place, loss) and not last:
            raise PrunedError(f"validation loss {loss:.4g} at validation {place} is behind the other trials")

    def check_forecast(self, seconds: float) -> None:
        """Refuse to begin what cannot end in time, unless nothing has come to its end yet.

        Raises:
            TimeUpError: the rest of the time is shorter.
        """
        if self._anything_done and seconds > self.seconds_left:
            raise TimeUpError(f"it would take about {seconds:.0f} s, and {max(self.seconds_left, 0):.0f} s are left")

    def time_is_over(self) -> bool:
        """Whether the search should have ended by now; asked after each optimizer step."""
        return self.seconds_left <= 0

    def check_time(self) -> None:
        """Raise `TimeUpError` where the time of the search is over."""
        if self.time_is_over():
            raise TimeUpError("the time of the search is over")
