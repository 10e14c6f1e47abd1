"""The loss while a notebook trains: one picture that is updated in place. Its state knows numbers and a clock, no display.

Each update is the whole picture, so a page that was reconnected or reloaded shows the newest one. Outside a notebook nothing is
drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from utils.progress import in_notebook
from utils.training.curves import Panel, picture_svg
from utils.training.dashboard import Column, loss_panel

PLOT_SECONDS = 5.0
"""Between two pictures, at least."""
COST = 0.01
"""Largest share of the time that drawing may take: a picture that took 0.1 s is followed by 10 s of rest."""
MOST_POINTS = 400
"""Points of the training curve that are kept; neighbours are averaged when there are more."""


class LiveLoss:
    """Losses of a run, thinned as they come, and whether it is time to draw."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, seconds: float = PLOT_SECONDS) -> None:
        self.points: list[tuple[float, float]] = []
        self.validations: list[tuple[float, float]] = []
        self._clock, self._last, self._rest, self._least = clock, -float("inf"), seconds, seconds
        self._step, self._run, self._sum, self._count = 0, 1, 0.0, 0

    def take(self, losses: Sequence[float], validations: Sequence[tuple[int, float]]) -> None:
        """Take the histories of a run as they are now; what was taken before is not looked at again."""
        for step, loss in enumerate(losses[self._step :], start=self._step + 1):
            self._sum, self._count = self._sum + loss, self._count + 1
            if self._count >= self._run:
                self.points.append((float(step), self._sum / self._count))
                self._sum, self._count = 0.0, 0
        self._step = max(self._step, len(losses))
        self.validations = [(float(step), loss) for step, loss in validations]
        while len(self.points) > MOST_POINTS:
            pairs = zip(self.points[0::2], self.points[1::2])
            rest = self.points[-1:] if len(self.points) % 2 else []
            self.points = [(second[0], (first[1] + second[1]) / 2) for first, second in pairs] + rest
            self._run *= 2

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last picture."""
        return self._clock() - self._last >= self._rest

    def drawn(self, seconds: float) -> None:
        """Note that a picture was drawn and how long that took."""
        self._last, self._rest = self._clock(), max(self._least, seconds / COST)

    def panel(self) -> Panel:
        """The curves so far."""
        return loss_panel(_column(self.points), _column(self.validations))


def _column(pairs: Sequence[tuple[float, float]]) -> Column:
    return Column(tuple(x for x, _ in pairs), tuple(y for _, y in pairs))


class PictureView(Protocol):
    """Where pictures go."""

    def show(self, picture: LivePicture) -> None:
        """Show a picture in the place of the one before."""


class LivePicture:
    """One state of the plot with its two views."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel

    def __repr__(self) -> str:
        series = self.panel.series
        return f"loss {series[0].y[-1]:.3f} at step {series[0].x[-1]:.0f}" if series and series[0].y else "no loss yet"

    def _repr_html_(self) -> str:
        return f'<div class="tb-live-loss" style="max-width:34rem">{picture_svg([self.panel], columns=1)}</div>'


class NotebookView:
    """One output of a notebook, updated in place by its display id."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, picture: LivePicture) -> None:
        """Show a picture in the place of the one before."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


class LivePlot:
    """Draws the loss where and when that is wanted.

    Args:
        view: where to; None is the notebook's output, and nothing outside of one.
        clock: monotonic seconds.
        seconds: between two pictures, at least.

    Example:
        >>> plot = LivePlot()
        >>> plot.update(losses, [(100, 2.31)])   # after any step, as often as you like
        >>> plot.close(losses, [(100, 2.31), (200, 2.02)])
    """

    def __init__(
        self,
        view: PictureView | None = None,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = PLOT_SECONDS,
    ) -> None:
        self.state, self._clock = LiveLoss(clock, seconds), clock
        self._view: PictureView | None = view if view is not None else NotebookView() if in_notebook() else None

    @property
    def wanted(self) -> bool:
        """Whether the next update would be drawn."""
        return self._view is not None and self.state.due

    def update(self, losses: Sequence[float], validations: Sequence[tuple[int, float]] = ()) -> None:
        """Draw, where it is time.

        Args:
            losses: of every optimizer step so far.
            validations: (optimizer step, loss).
        """
        if self.wanted:
            self._draw(losses, validations)

    def close(self, losses: Sequence[float], validations: Sequence[tuple[int, float]] = ()) -> None:
        """Draw the last state."""
        if self._view is not None and losses:
            self._draw(losses, validations)

    def _draw(self, losses: Sequence[float], validations: Sequence[tuple[int, float]]) -> None:
        assert self._view is not None
        self.state.take(losses, validations)
        if not self.state.points and not self.state.validations:
            return
        begun = self._clock()
        self._view.show(LivePicture(self.state.panel()))
        self.state.drawn(self._clock() - begun)
