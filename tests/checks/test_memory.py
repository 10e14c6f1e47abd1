"""What a training step holds in memory: counted by hand, beside torch's profiler, and extrapolated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import memory_forecast
from tests.checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import memory
from utils.checks.allocations import allocations, peak_at
from utils.checks.preserved import preserved
from utils.checks.sampling import Sampler, loss_of


class Wide(nn.Module):
    def __init__(self, width, vocabulary=50):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 4)
        self.up, self.down, self.head = nn.Linear(4, width), nn.Linear(width, 4), nn.Linear(4, vocabulary)

    def forward(self, input_ids):
        return self.head(self.down(self.up(self.embedding(input_ids))))


class Squared(Wide):
    def forward(self, input_ids):
        x = self.up(self.embedding(input_ids))
        return self.head(self.down(x * x))  # x is kept for both of its roles, and x * x for `down`


def _saved(model, ids):
    adapted = adapt(model)
    return memory.saved_by(adapted, lambda: loss_of(adapted, ids))


def test_saved_bytes_are_counted_once_and_without_parameters():
    width, ids = 32, Sampler(50, 64).ids(2, 8)
    # the input of `down` (B, T, width) is all that depends on the width, in float32
    assert _saved(Wide(width), ids) - _saved(Wide(width // 2), ids) == 2 * 8 * (width // 2) * 4
    assert _saved(Wide(width), ids) < 40_000
    assert _saved(Squared(width), ids) - _saved(Wide(width), ids) == 2 * 8 * width * 4


def test_tensors_count_from_their_making_to_their_end():
    kept = torch.zeros(10)

    def run():
        first = kept + 1  # 40 bytes more
        second = torch.cat([first, first])  # 80 more
        del first  # 40 less
        second.view(2, 10).add_(1)  # a view and an operation in place: nothing
        return second * 2  # 80 more, and everything ends

    assert allocations(run).tolist() == [40, 120, 80, 80, 160]


@pytest.mark.parametrize(("batch", "length"), [(2, 24), (6, 96)])
def test_a_trace_has_the_peak_that_the_profiler_sees(batch, length):
    torch.manual_seed(0)
    adapted, sampler = adapt(m.Healthy(limit=128)), Sampler(m.VOCABULARY, 128)
    adapted.train()
    fixed = memory.fixed_bytes(adapted.model)
    passes = float(memory._trace(adapted, sampler.ids(batch, length)).max())
    with preserved(adapted):
        measured = memory_forecast.measured_peak(adapted, sampler, batch, length)
    assert fixed["parameters"] + fixed["buffers"] + fixed["AdamW"] + passes == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("name", ["GPT-2", "MLP-mixer", "hand-written pair"])
def test_forecasts_are_within_15_percent_of_the_measured_peak(name):
    case = next(case for case in memory_forecast.cases() if case.name == name)
    predicted, measured = memory_forecast.ratio_of(case)
    assert predicted == pytest.approx(measured, rel=memory_forecast.MARGIN)


def test_each_operation_is_extrapolated_by_itself():
    def trace(batch, length):
        return np.asarray([7.0 + batch * length + 2 * batch * length**2 + 3 * length, 500.0])

    probes = {(b, n): trace(b, n) for b in (2, 3) for n in (4, 8)}
    assert max(values.max() for values in probes.values()) == 500.0  # at small sizes the second operation is the peak
    assert peak_at(probes, 8, 64) == pytest.approx(trace(8, 64)[0])
    assert peak_at(probes, 1, 1) == 500.0


def test_runs_of_unequal_length_are_extrapolated_by_their_peaks():
    probes = {(b, n): np.full(n, 10.0 * b * n) for b in (2, 3) for n in (4, 8)}
    assert peak_at(probes, 8, 64) == pytest.approx(10 * 8 * 64)


def test_images_have_no_length():
    probes = {(b, 1): np.asarray([100.0, 20.0 * b]) for b in (2, 3)}
    assert (peak_at(probes, 4, 1), peak_at(probes, 64, 1)) == (100.0, 1280.0)


def test_the_total_is_the_sum_of_its_parts():
    details = memory.check(adapt(m.Healthy())).measured
    assert details["total_gb"] * memory.GB == pytest.approx(sum(details["bytes"].values()), abs=10)


def test_weights_gradients_and_adamw_are_counted():
    adapted = adapt(m.Healthy(tied=True))
    for parameter in adapted.model.norm.parameters():
        parameter.requires_grad_(False)
    size = 4 * adapted.num_parameters()
    trainable = size - 4 * 2 * m.WIDTH
    fixed = memory.fixed_bytes(adapted.model)
    assert (fixed["parameters"], fixed["gradients"], fixed["AdamW"]) == (size, trainable, 2 * trainable)
    result = memory.check(adapted)
    found = result.measured["bytes"]
    assert (found["parameters"], found["AdamW"]) == (size, 2 * trainable)
    assert found["gradients and activations at 8 × 32"] > trainable
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
