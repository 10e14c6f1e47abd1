"""The planted faults against the checks that are responsible, and healthy models against all of them."""

from __future__ import annotations

import pytest
import torch

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import causality, gradients, rows
from utils.tier1_critical_validation import TIER1

pytestmark = pytest.mark.usefixtures("no_onnx_dry_run")

ALL = {check.name: check for check in TIER1}


def _label(value):
    """A readable test id: the class of the planted fault, the check, the status."""
    return getattr(value, "__name__", value) if isinstance(value, (str, type)) else ""


def _run(check, build):
    torch.manual_seed(0)
    return check(adapt(build()))


@pytest.mark.parametrize(
    ("build", "check", "status", "words"),
    [
        (m.Constant, "numerical stability", "fail", ["ignores its input", "Constant"]),
        (m.MultipliedByZero, "numerical stability", "fail", ["ignores its input"]),
        (m.MultipliedByZero, "gradient flow", "fail", ["exactly zero", "blocks.0"]),
        (m.NaNModule, "numerical stability", "fail", ["NaN", "blocks.1.mlp.1"]),
        (m.NaNModule, "gradient flow", "fail", ["NaN or infinite gradients"]),
        (m.NaNModule, "initialisation", "fail", ["first loss is nan"]),
        (m.NaNStatement, "numerical stability", "fail", ["after the last module"]),
        (m.NaNWeight, "numerical stability", "fail", ["weight blocks.0.mlp.0.weight itself"]),
        (m.NaNWeight, "initialisation", "fail", ["hold NaN", "blocks.0.mlp.0.weight"]),
        (m.NaNGradient, "gradient flow", "fail", ["NaN or infinite gradients"]),
        (m.Huge, "numerical stability", "warn", ["largest logit", "head"]),
        (m.RandomInEval, "determinism", "fail", ["same input gives different logits", "head", "self.training"]),
        (m.HardType, "numerical stability", "warn", ["autocast bfloat16 does not run", "HardType"]),
        (m.HiddenNaN, "numerical stability", "warn", ["odd returns NaN", "logits are finite"]),
        (m.Cancelling, "numerical stability", "warn", ["autocast bfloat16 differs by"]),
        (m.NaNInNarrowType, "numerical stability", "warn", ["autocast bfloat16 gives NaN"]),
        (m.FaintBranch, "gradient flow", "warn", ["vanish in side.weight", "below 1e-09"]),
        (m.Detached, "gradient flow", "fail", ["no gradient although", "token_embedding", "detach()"]),
        (m.Unused, "gradient flow", "warn", ["never called", "ffn_9"]),
        (m.Frozen, "gradient flow", "fail", ["every parameter is frozen", "requires_grad_"]),
        (m.Sigmoids, "gradient flow", "fail", ["vanish towards the input", "layers.0.weight"]),
        (m.Amplified, "gradient flow", "fail", ["grow towards the input", "layers.0.weight"]),
        (m.EqualWeights, "initialisation", "fail", ["entries are equal", "blocks.0.mlp.0.weight"]),
        (m.WildLayer, "initialisation", "warn", ["Unusual scale", "blocks.1.mlp.0 (line", "has std"]),
        (m.WeakSibling, "initialisation", "warn", ["matrices: blocks.2.mlp.0.weight"]),
        (m.LoudBody, "initialisation", "warn", ["values that reach head", "LayerNorm before the head"]),
        (m.Copying, "initialisation", "warn", ["below ln V", "random ids"]),
        (
            lambda: m.Healthy(tied=True),
            "initialisation",
            "warn",
            ["tied token embedding", "sqrt(16)", "std 0.02", "auto"],
        ),
        (m.FixedBatch, "shape robustness", "fail", ["depends on the batch alone", "batch 1, 4 fails, 2 works"]),
        (m.HiddenLimit, "shape robustness", "warn", ["No limit is stated", "has 12", "max_seq_len=12"]),
        (
            lambda: adapt(m.Healthy(limit=1100), {"max_seq_len": 2048}),
            "shape robustness",
            "fail",
            ["stated limit is 2048", "has 1100", "or enlarge"],
        ),
        (m.NarrowHead, "shape robustness", "fail", ["scores 51 tokens", "knows 61"]),
        (
            lambda: m.Healthy(batch_first=False),
            "row independence",
            "fail",
            ["batch_first=False", "blocks.0.attention"],
        ),
        (
            lambda: m.Healthy(causal=False),
            "causality",
            "warn",
            ["sees the future", "train() uses a version made causal by its own switches", "blocks.0.causal"],
        ),
        (
            m.Pooled,
            "causality",
            "warn",
            ["sees the future", "cannot be made causal", "train() refuses it", "masked"],
        ),
        (m.NormalisedOverTheBatch, "causality", "warn", ["sees the future in training mode", "BatchNorm"]),
        (
            m.RaisesInTraining,
            "gradient flow",
            "fail",
            ["RaisesInTraining raised ValueError", "(4, 32)", "no training today"],
        ),
    ],
    ids=_label,
)
def test_a_planted_fault_is_found_and_named(build, check, status, words):
    result = _run(ALL[check], build)
    text = result.summary()
    assert result.status == status, text
    assert [word for word in words if word not in text] == [], text
    assert result.cause
    assert result.fix


@pytest.mark.parametrize("check", [name for name in ALL if name != "causality"])
@pytest.mark.parametrize(
    "build",
    [m.Healthy, m.ZeroHead, m.PartlyFrozen, lambda: m.Healthy(layers=8), lambda: m.Healthy(limit=1)],
    ids=_label,
)
def test_healthy_models_raise_no_alarm(build, check):
    result = _run(ALL[check], build)
    assert result.status in ("pass", "skip"), result.summary()
    assert not result.cause


@pytest.mark.parametrize(
    "check", ["gradient flow", "numerical stability", "initialisation", "row independence", "memory"]
)
@pytest.mark.parametrize(
    ("name", "build"), list(m.hugging_face()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_hugging_face_defaults_raise_no_alarm(name, build, check):
    result = _run(ALL[check], build)
    assert result.status == "pass", f"{name}\n{result.summary()}"


def test_not_finite_logits_are_never_compared():
    for check in (causality.check, rows.check):
        assert _run(check, m.NaNModule).status == "skip"


def test_a_head_that_starts_at_zero_is_looked_through_and_named():
    result = _run(gradients.check, m.ZeroHead)
    assert result.measured["started_at_zero"] == ["head.weight"]
    assert "head.weight starts at zero" in result.headline
