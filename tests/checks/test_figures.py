"""What the informative checks measure, against counts made by hand."""

from __future__ import annotations

import pytest
import torch

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import gradients, initialisation, shapes, speed


@pytest.mark.parametrize(
    ("runs", "median"),
    [
        ((0.1, 0.07, 0.001, 0.002, 0.003), 2.0),  # two to warm up, then as many as the budget holds, at least three
        ((0.9, 0.7, 0.8), 800.0),  # slow: the first counts, too
    ],
)
def test_latency_is_a_median(runs: tuple[float, ...], median: float):
    clock = iter([time for seconds in runs for time in (0.0, seconds)])
    row = speed.measure(adapt(m.Healthy()), torch.zeros((2, 5), dtype=torch.long), clock=lambda: next(clock))
    assert next(clock, None) is None
    assert (row["batch"], row["length"], row["runs"]) == (2, 5, 3)
    assert row["median ms"] == pytest.approx(median)
    assert row["IQR ms"] == pytest.approx(median / 2 if median < 100 else 100)
    assert row["tokens/s"] == pytest.approx(1e4 / median)


def test_speed_reports_each_shape():
    result = speed.check(adapt(m.Healthy(limit=16)))
    assert [(row["batch"], row["length"]) for row in result.measured["table"]] == [(1, 16), (8, 16)]
    assert "tokens/s" in result.headline


def test_a_model_with_limit_16_is_run_up_to_16_and_refuses_17():
    result = shapes.check(adapt(m.Healthy(limit=16)))
    assert result.status == "pass"
    assert {row["length"] for row in result.measured["table"]} == {1, 2, 7, 16}
    assert {row["batch"] for row in result.measured["table"]} == {1, 2, 4}
    assert result.measured["refusals"] == {
        "id 61, one past the embedding rows": True,
        "17 tokens, one past the limit": True,
    }


def test_an_unguarded_limit_is_a_warning(monkeypatch):
    adapted = adapt(m.Healthy())
    monkeypatch.setattr(adapted, "check_inputs", lambda ids: None)
    result = shapes.check(adapted)
    assert result.status == "warn"
    assert "33 tokens, one past the limit" in result.headline


def test_large_logits_are_not_made(monkeypatch):
    monkeypatch.setattr(shapes, "LARGEST_LOGITS", 2 * 32 * m.VOCABULARY)
    found = {(row["batch"], row["length"]) for row in shapes.check(adapt(m.Healthy())).measured["table"]}
    assert (2, 32) in found
    assert (4, 32) not in found


def test_gradient_figures():
    details = gradients.check(adapt(m.Healthy())).measured
    assert details["max_gradient"] > details["min_gradient"] > 0
    assert (details["has_vanishing_gradients"], details["has_exploding_gradients"]) == (False, False)
    assert len(details["table"]) == len(list(m.Healthy().parameters()))
    assert gradients.check(adapt(m.Sigmoids())).measured["has_vanishing_gradients"]
    assert gradients.check(adapt(m.Amplified())).measured["has_exploding_gradients"]


def test_the_mended_loss_is_measured_not_promised():
    torch.manual_seed(0)
    details = initialisation.check(adapt(m.Healthy(tied=True))).measured
    assert details["first_loss"] > details["ln_vocabulary"] + 1
    assert details["first_loss_with_std_0.02"] == pytest.approx(details["ln_vocabulary"], abs=0.1)
