"""The certificate of gradient accumulation, and who does not get it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import accumulation


class Neighbours(m.Healthy):
    """Each row is centred by the mean over the batch."""

    def body(self, input_ids):
        x = super().body(input_ids)
        return x - 0.5 * x.mean(0, keepdim=True)


class Remembers(m.Healthy):
    """Adds what the call before left behind."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(m.WIDTH))

    def body(self, input_ids):
        x = super().body(input_ids) + self.last
        self.last = x.detach().mean((0, 1))
        return x


class Convolved(nn.Module):
    """Images through BatchNorm, as is usual."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, pixel_values):
        return self.head(self.norm(self.conv(pixel_values)).relu().mean((2, 3)))


def _checked(build, config=None):
    torch.manual_seed(0)
    return accumulation.check(adapt(build(), config))


@pytest.mark.parametrize("build", [m.Healthy, m.ZeroHead, m.PartlyFrozen])
def test_a_healthy_model_gets_the_certificate(build):
    result = _checked(build)
    assert result.status == "pass", result.summary()
    assert result.measured["relative_difference"] <= 1e-5
    assert [row["micro-batches"] for row in result.measured["table"]] == [2, 4]


@pytest.mark.parametrize(("name", "build"), list(m.hugging_face()), ids=[name for name, _ in m.hugging_face()])
def test_hugging_face_defaults_get_it(name, build):
    assert _checked(build).status == "pass"


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        (Neighbours, "fail", ["another gradient", "rows of a batch meet"]),
        (Remembers, "fail", ["the second time", "keeps something"]),
        (m.Cancelling, "warn", ["Rounding", "float64 they agree"]),
        (m.RandomInEval, "fail", ["draws random numbers"]),
        (m.NormalisedOverTheBatch, "warn", ["BatchNorm (norm)", "LayerNorm"]),
        (m.Frozen, "skip", ["frozen"]),
        (m.NaNGradient, "skip", ["not finite"]),
        (lambda: m.Healthy(limit=1), "skip", ["single token"]),
    ],
)
def test_who_does_not_get_it_and_why(build, status, words):
    result = _checked(build)
    assert result.status == status, result.summary()
    assert [word for word in words if word not in result.summary()] == [], result.summary()


def test_batch_norm_among_images_is_named_and_no_fault():
    result = _checked(Convolved, {"image_size": 16, "num_channels": 3})
    assert result.status == "skip", result.summary()
    assert "BatchNorm" in result.headline and "norm" in result.headline


def test_equal_shares_would_be_wrong(monkeypatch):
    """The window is ragged on purpose: the mean of the micro-batches' means is another gradient."""
    monkeypatch.setattr(accumulation, "counted", lambda labels, shift: torch.tensor(float(len(labels))))
    assert _checked(m.Healthy).status == "fail"


def test_rows_differ_in_length_and_padding_carries_no_label():
    adapted = adapt(m.Healthy())
    labels = accumulation._ragged(adapted, accumulation.Sampler.of(adapted))["labels"]
    kept = (labels >= 0).sum(1).tolist()
    assert kept == sorted(set(kept), reverse=True)
