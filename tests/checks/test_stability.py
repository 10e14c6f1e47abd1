"""Hidden rows and narrow precision; the other planted faults of numbers lie in `test_faults`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from checks import models as m
from checks.test_padding import CausalNaN, Classifier, Masked
from utils.adapters.model_adapter import adapt
from utils.checks import stability


class NaNAtHiddenPositionsOnly(CausalNaN):
    """One layer: the row that sees nothing is NaN, and no other position reads it."""

    def __init__(self):
        super().__init__(layers=1)


class BeyondFloat16(m.Healthy):
    """Values around 1e5 on the way: float32 and bfloat16 hold them, float16 does not."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(m.WIDTH, m.WIDTH, bias=False), nn.Linear(m.WIDTH, m.WIDTH, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.eye(m.WIDTH) * 1e5)
            self.down.weight.copy_(torch.eye(m.WIDTH) * 1e-5)

    def body(self, input_ids):
        return self.down(self.up(super().body(input_ids)))


def _run(build):
    torch.manual_seed(0)
    return stability.check(adapt(build()))


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        (CausalNaN, "fail", ["first 4 tokens hidden, the logits are NaN", "softmax over a row of -inf", "finfo"]),
        (NaNAtHiddenPositionsOnly, "warn", ["hidden positions of the logits are NaN"]),
        (BeyondFloat16, "warn", ["autocast float16 gives NaN or infinities", "range of the narrow type"]),
    ],
)
def test_a_planted_fault_is_found(build, status, words):
    result = _run(build)
    assert result.status == status, result.summary()
    assert [word for word in words if word not in result.summary()] == [], result.summary()


@pytest.mark.parametrize("build", [m.Healthy, Masked, Classifier, lambda: m.Healthy(limit=1)])
def test_healthy_models_raise_no_alarm(build):
    result = _run(build)
    assert result.status == "pass", result.summary()
    assert [row["precision"] for row in result.details.to_dict("records")] == ["bfloat16", "float16"]


class NoNarrowKernel(m.Healthy):
    def forward(self, input_ids):
        logits = super().forward(input_ids)
        if logits.dtype != torch.float32:
            raise RuntimeError("could not create a primitive descriptor for the LSTM")
        return logits


def test_a_processor_without_narrow_arithmetic_is_not_the_models_fault():
    result = _run(NoNarrowKernel)
    assert result.status == "pass"
    assert "mixed precision does not run on this device" in result.headline


class NoParameters(nn.Module):
    def forward(self, input_ids):
        return torch.nn.functional.one_hot(input_ids, m.VOCABULARY).float()


def test_a_model_without_parameters_can_be_checked():
    result = stability.check(adapt(NoParameters(), {"vocab_size": m.VOCABULARY, "max_seq_len": 8}))
    assert result.unfinished == "" and result.status == "pass", result.summary()


def test_a_large_model_sees_few_tokens_under_autocast(monkeypatch):
    adapted = adapt(m.Healthy())
    monkeypatch.setattr(stability, "PRECISION_WORK", 3.5 * adapted.num_parameters())
    assert stability._few(adapted, stability.Sampler.of(adapted)).shape == (1, 3)


class Untouched(nn.Module):
    """Narrow convolutions with small weights: the signal lives by the statistics of its normalisations, or dies."""

    def __init__(self, constant=False):
        super().__init__()
        self.image_size, self.constant = 16, constant
        layers = [nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 1), nn.BatchNorm2d(8), nn.SiLU()) for i in range(6)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(8, 4)
        for parameter in self.parameters():
            if parameter.dim() == 4:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, pixel_values):
        x = self.layers(pixel_values).amax((2, 3))
        return self.head(0 * x if self.constant else x)


def test_normalisations_that_no_batch_has_reached_get_statistics_first():
    result = _run(Untouched)
    assert result.status == "pass", result.summary()


def test_statistics_do_not_excuse_a_constant_output():
    result = _run(lambda: Untouched(constant=True))
    assert result.status == "fail" and "the pixels do not reach the logits" in result.cause, result.summary()


def test_statistics_are_given_back():
    adapted = adapt(Untouched())
    stability.check(adapted)
    norms = [module for module in adapted.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(module.running_mean.any() or module.momentum != 0.1 for module in norms)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_not_run_under_autocast(kind):
    """PyTorch's LayerNorm refuses bfloat16 weights under float16 autocast on a CPU, by nobody's fault."""
    result = stability.check(adapt(m.Healthy().to(kind)))
    assert result.status == "pass", result.summary()
    assert f"not compared, since weights are {str(kind).removeprefix('torch.')}" in result.headline
    assert result.measured["table"] == []
