from __future__ import annotations

import math

import pytest

from tests.training.tiny import make_tiny
from utils.errors import GenerationError
from utils.testing import FakeClock
from utils.training.curves import Panel, Series
from utils.training.live_plot import LivePicture
from utils.ui.decisions.curve import BOTTOM, HEIGHT, LEFT, TOP, LossCurve
from utils.ui.decisions.live import MOST_SAMPLES, Live, Sample, prompt_of, writes
from utils.ui.decisions.sample_hooks import SAMPLE_COST, SAMPLE_SECONDS, SampleHooks
from utils.ui.work import Outcome


def test_every_change_is_told_and_a_new_training_forgets_the_one_before():
    live, told = Live(), []
    live.watch(told.append)
    live.draw("Training: 5 steps", 0.5)
    live.show(LivePicture(Panel("loss")))
    live.add(Sample(3, "The", " cat"))
    assert told == ["line", "picture", "samples"] and live.going_on
    live.end(Outcome())
    assert told[-1] == "end" and not live.going_on
    live.begin()
    assert (live.line, live.picture, live.samples, live.outcome) == ("", None, [], None)


def test_the_first_sample_and_the_newest_ones_are_kept():
    live = Live()
    for step in range(40):
        live.add(Sample(step, "", ""))
    steps = [sample.step for sample in live.samples]
    assert len(steps) == MOST_SAMPLES and steps[0] == 0 and steps[1:] == list(range(29, 40))


class Writing:
    """Stands for `generate`: takes some seconds of the clock."""

    def __init__(self, clock, seconds, error=None):
        self.clock, self.seconds, self.error, self.asked = clock, seconds, error, []

    def __call__(self, model, prompt, **options):
        self.asked.append(prompt)
        self.clock.now += self.seconds
        if self.error is not None:
            raise self.error
        return prompt + " and so on"


def hooks_with(monkeypatch, seconds=0.01, error=None, model=None, tokenizer="a tokenizer"):
    clock, live, names = FakeClock(), Live(), []
    writing = Writing(clock, seconds, error)
    monkeypatch.setattr("utils.training.generation.generate", writing)
    hooks = SampleHooks(live, "The cat", names.append, clock)
    hooks.on_model_ready(model or make_tiny(), tokenizer)
    hooks.on_training_start("my-run", 1000, 0)
    return hooks, live, clock, names


@pytest.mark.parametrize(("seconds", "rest"), [(0.01, SAMPLE_SECONDS), (0.5, 0.5 / SAMPLE_COST)])
def test_samples_rest_as_long_as_they_must_not_to_be_felt(monkeypatch, seconds, rest):
    hooks, live, clock, names = hooks_with(monkeypatch, seconds)
    assert names == ["my-run"] and live.samples == [Sample(0, "The cat", " and so on")]
    for step in range(1, 400):
        clock.now += 0.5
        hooks.on_step_end(step, 1.0)
    share = seconds * (len(live.samples) - 1) / clock.now
    assert live.samples[-1].step > 0 and share <= SAMPLE_COST
    gaps = [second.step - first.step for first, second in zip(live.samples[1:], live.samples[2:])]
    assert all(gap * 0.5 >= rest - 0.5 - seconds for gap in gaps)


def test_a_text_that_cannot_be_written_is_told_and_ends_nothing(monkeypatch):
    _, live, _, _ = hooks_with(monkeypatch, error=GenerationError("scores leave nothing to choose"))
    assert live.samples == [Sample(0, "The cat", "", "scores leave nothing to choose")]


def test_without_a_tokenizer_nothing_is_written(monkeypatch):
    hooks, live, clock, _ = hooks_with(monkeypatch, tokenizer=None)
    clock.now += 1e6
    hooks.on_step_end(5, 1.0)
    assert live.samples == []


@pytest.mark.parametrize(
    ("texts", "prompt"),
    [(["", "  ", "One two three four five", "x"], "One two three four"), ([], "The"), (["x" * 100], "x" * 60)],
)
def test_samples_begin_as_the_data_does(texts, prompt):
    assert prompt_of(texts) == prompt


def test_only_models_that_write_are_asked_to():
    assert writes(make_tiny())


# ---- the curve -------------------------------------------------------------------------------------------------------
def test_the_curve_fills_the_picture():
    panel = Panel("loss", "optimizer step", "nats", [Series("training", [1, 2, 3], [4.0, math.nan, 2.0])])
    curve = LossCurve.of(panel)
    (line,) = curve.lines
    assert line.points == f"{LEFT},{TOP} 630.0,{HEIGHT - BOTTOM}" and line.last == "2.000" and not line.dots
    assert [text for _, text in curve.along] == ["1", "2", "3"]
    assert [text for _, text in curve.across] == ["2", "2.5", "3", "3.5", "4"]


def test_one_point_and_none_can_be_drawn():
    assert LossCurve.of(Panel("loss", series=[Series("validation", [5], [1.0], dots=True)])).lines[0].dots
    assert LossCurve.of(Panel("loss", missing="not recorded")).lines == ()
