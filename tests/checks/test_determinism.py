from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import determinism


class PythonRandom(m.Healthy):
    def forward(self, input_ids):
        return super().forward(input_ids) * (1 + random.random())


class NumpyRandom(m.Healthy):
    def forward(self, input_ids):
        return super().forward(input_ids) + float(np.random.randn())  # noqa: NPY002 - what careless models draw from


class KeepsState(m.Healthy):
    """Adds what it saw last time, as a cache that is never emptied does."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, input_ids):
        self.calls += 1
        return super().forward(input_ids) + 0.1 * self.calls


class WithDropout(m.Healthy):
    def __init__(self, share=0.2):
        super().__init__()
        self.drop = nn.Dropout(share)

    def forward(self, input_ids):
        return self.head(self.drop(self.body(input_ids)))


class StaysInEval(WithDropout):
    """Overrides train(), so that the mode never reaches its dropout."""

    def train(self, mode=True):
        super().train(mode)
        self.drop.eval()
        return self


class NeverCalled(WithDropout):
    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.attention.dropout = 0.0

    def forward(self, input_ids):
        return self.head(self.body(input_ids))


class BehindAZeroHead(WithDropout):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.head.weight)


class NoDropout(NeverCalled):
    def __init__(self):
        super().__init__()
        self.drop.p = 0.0


class Pixels(nn.Module):
    """A classifier of images."""

    def __init__(self, live=True):
        super().__init__()
        self.live = live
        self.body, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.body(pixel_values), 0.2, training=self.training or not self.live)
        return self.head(x.mean((2, 3)))


def _run(build):
    torch.manual_seed(0)
    return determinism.check(adapt(build()))


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        (m.RandomInEval, "fail", ["same input gives different logits", "(torch)", "head", "self.training"]),
        (PythonRandom, "fail", ["Python's random", "between the modules"]),
        (NumpyRandom, "fail", ["(NumPy's random)", "between the modules"]),
        (KeepsState, "fail", ["keeps something from one call", "empty the cache"]),
        (lambda: Pixels(live=False), "fail", ["same input gives different logits"]),
        (StaysInEval, "warn", ["drops nothing in train mode: drop", "stays in eval mode"]),
        (NeverCalled, "warn", ["two passes in train mode are equal", "drop, 0.2", "self.drop(x)"]),
    ],
)
def test_what_repeats_or_does_not_is_found(build, status, words):
    result = _run(build)
    assert result.status == status, result.summary()
    assert [word for word in words if word not in result.summary()] == [], result.summary()


@pytest.mark.parametrize(
    "build", [m.Healthy, WithDropout, BehindAZeroHead, NoDropout, Pixels, lambda: WithDropout(0.001)]
)
def test_healthy_models_raise_no_alarm(build):
    result = _run(build)
    assert result.status == "pass", result.summary()
    assert result.measured["eval_difference"] == 0


def test_a_share_too_small_to_judge_is_not_judged():
    class Tiny(StaysInEval):
        def __init__(self):
            super().__init__(0.001)

    assert _run(Tiny).measured["dead_dropout"] == []


def test_not_finite_logits_are_not_compared():
    assert _run(m.NaNModule).status == "skip"


@pytest.mark.parametrize(("name", "build"), list(m.hugging_face()))
def test_hugging_face_models_are_fine(name, build):
    result = _run(build)
    assert result.status == "pass", f"{name}\n{result.summary()}"
