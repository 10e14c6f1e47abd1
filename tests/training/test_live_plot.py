"""The loss in a notebook: in place, in time, whole each time, and nothing outside of one."""

from __future__ import annotations

import sys
import types

import pytest

from utils.training import live_plot
from utils.training.live_plot import LiveLoss, LivePicture, LivePlot, NotebookView


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A view that keeps pictures; each costs some seconds."""

    def __init__(self, clock: Clock, cost: float = 0.0) -> None:
        self.pictures: list[LivePicture] = []
        self.clock, self.cost = clock, cost

    def show(self, picture: LivePicture) -> None:
        self.clock.now += self.cost
        self.pictures.append(picture)


def train(clock: Clock, plot: LivePlot, seconds: int) -> list[float]:
    losses: list[float] = []
    for step in range(seconds * 10):  # ten steps a second
        clock.now += 0.1
        losses.append(1000.0 - step)
        plot.update(losses, [(1, 2.0)])
    return losses


@pytest.mark.parametrize(("cost", "at_most", "at_least"), [(0.0, 21, 18), (0.5, 3, 2)])
def test_pictures_are_rare_and_rarer_where_they_cost_more(cost, at_most, at_least):
    clock = Clock()
    shown = Shown(clock, cost)
    train(clock, LivePlot(shown, clock), 100)
    assert at_least <= len(shown.pictures) <= at_most


def test_each_picture_is_whole_and_the_last_is_drawn_at_the_end():
    clock = Clock()
    shown = Shown(clock)
    plot = LivePlot(shown, clock)
    losses = train(clock, plot, 10)
    plot.close(losses, [(1, 2.0), (100, 1.5)])
    last = shown.pictures[-1].panel
    assert list(last.series[0].x) == list(range(1, 101)) and list(last.series[0].y) == losses
    assert list(last.series[-1].y) == [2.0, 1.5]
    assert "<svg" in shown.pictures[-1]._repr_html_() and repr(shown.pictures[-1]) == "loss 901.000 at step 100"


def test_a_long_run_keeps_few_points_and_its_shape():
    state = LiveLoss(Clock())
    for end in range(1000, 100_001, 1000):
        state.take(range(end), [])
    assert len(state.points) <= live_plot.MOST_POINTS
    assert all(abs(value - step) < 1000 for step, value in state.points)
    assert [step for step, _ in state.points] == sorted(step for step, _ in state.points)


def test_a_resumed_run_shows_its_whole_history_at_once():
    state = LiveLoss(Clock())
    state.take([3.0, 2.0, 1.0], [(3, 1.1)])
    state.take([3.0, 2.0, 1.0], [(3, 1.1)])
    assert state.points == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]


def test_outside_a_notebook_nothing_is_drawn():
    plot = LivePlot()
    assert not plot.wanted
    plot.update([1.0])
    plot.close([1.0])


def test_a_notebook_gets_one_output_that_is_updated(monkeypatch):
    calls = []

    class Handle:
        def update(self, picture):
            calls.append("update")

    def display(picture, display_id):
        calls.append(f"display {display_id}")
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setattr(live_plot, "in_notebook", lambda: True)
    clock = Clock()
    plot = LivePlot(clock=clock)
    assert isinstance(plot._view, NotebookView)
    train(clock, plot, 20)
    assert calls[0] == "display True" and set(calls[1:]) == {"update"} and 3 <= len(calls) <= 5
