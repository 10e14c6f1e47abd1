"""What the informative checks measure, against counts made by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import gradients, initialisation, memory, shapes, speed
from utils.checks.sampling import Sampler


class Wide(nn.Module):
    def __init__(self, width, vocabulary=50):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 4)
        self.up, self.down, self.head = nn.Linear(4, width), nn.Linear(width, 4), nn.Linear(4, vocabulary)

    def forward(self, input_ids):
        return self.head(self.down(self.up(self.embedding(input_ids))))


def test_saved_bytes_are_counted_once_and_without_parameters():
    width, batch, length = 32, 2, 8
    adapted, sampler = adapt(Wide(width)), Sampler(50, 64)
    more, less = adapt(Wide(width)), adapt(Wide(width // 2))
    ids = sampler.ids(batch, length)
    # the input of `down` (B, T, width) is all that depends on the width, in float32
    assert memory.saved_bytes(more, ids) - memory.saved_bytes(less, ids) == batch * length * (width // 2) * 4
    assert memory.saved_bytes(adapted, ids) < 40_000


def test_a_tensor_kept_twice_counts_once():
    class Squared(Wide):
        def forward(self, input_ids):
            x = self.up(self.embedding(input_ids))
            return self.head(self.down(x * x))  # x is kept for both of its roles, and x * x for `down`

    ids, width = Sampler(50, 64).ids(2, 8), 32
    extra = memory.saved_bytes(adapt(Squared(width)), ids) - memory.saved_bytes(adapt(Wide(width)), ids)
    assert extra == 2 * 8 * width * 4


def test_the_total_is_the_sum_of_its_parts():
    details = memory.check(adapt(m.Healthy())).measured
    assert details["bytes"]["logits and their gradient"] == 2 * 4 * 8 * 32 * m.VOCABULARY
    assert details["total_gb"] * memory.GB == pytest.approx(sum(details["bytes"].values()), abs=10)


def test_activations_extrapolate_to_sizes_never_measured():
    torch.manual_seed(0)
    adapted, sampler = adapt(m.Healthy(limit=128)), Sampler(m.VOCABULARY, 128)
    adapted.train()
    fitted = memory._fit({(b, n): memory.saved_bytes(adapted, sampler.ids(b, n)) for b in (1, 2) for n in (24, 48)})
    measured = memory.saved_bytes(adapted, sampler.ids(6, 128))
    assert fitted.at(6, 128) == pytest.approx(measured, rel=0.02)  # allocation sizes are rounded here and there


def test_weights_gradients_and_adamw_are_counted():
    adapted = adapt(m.Healthy(tied=True))
    for parameter in adapted.model.norm.parameters():
        parameter.requires_grad_(False)
    result = memory.check(adapted)
    size = 4 * adapted.num_parameters()
    trainable = size - 4 * 2 * m.WIDTH
    found = result.measured["bytes"]
    assert (found["parameters"], found["gradients"], found["AdamW"]) == (size, trainable, 2 * trainable)
    assert "Fits a T4 (15 GB) at batch 8 × 32" in result.headline


def test_too_large_for_a_t4_says_which_batch_fits(monkeypatch):
    total = memory.check(adapt(m.Healthy())).measured["total_gb"] * memory.GB
    monkeypatch.setattr(memory, "T4_BYTES", total - 1e5)
    result = memory.check(adapt(m.Healthy()))
    assert result.status == "warn"
    batch = result.measured["largest_batch_on_t4"]
    assert 1 <= batch < 8
    assert f"batch_size={batch}" in result.fix
    monkeypatch.setattr(memory, "T4_BYTES", 0)
    assert "larger GPU" in memory.check(adapt(m.Healthy())).fix


def test_latency_is_a_median_without_warm_up():
    ticks = itertools.accumulate(itertools.cycle([0.0, 9.0, 0.0, 9.0, 0.0, 0.001, 0.0, 0.002, 0.0, 0.003]))
    adapted = adapt(m.Healthy())
    row = speed.measure(adapted, torch.zeros((2, 5), dtype=torch.long), clock=lambda: next(ticks))
    assert (row["batch"], row["length"], row["runs"]) == (2, 5, 3)
    assert row["median ms"] == pytest.approx(2.0)
    assert row["IQR ms"] == pytest.approx(1.0)
    assert row["tokens/s"] == pytest.approx(10 / 0.002)


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


@pytest.mark.parametrize("values", [{8: 16.0}, {8: 16.0, 16: 32.0}, {8: 8 + 64.0, 16: 16 + 256.0}])
def test_a_line_goes_through_its_points(values):
    linear, square = memory._line(values)
    assert {n: linear * n + square * n * n for n in values} == pytest.approx(values)
