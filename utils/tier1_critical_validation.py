"""Tier 1: the checks that decide whether a model is sound. Holds which checks run, in which order; no check itself.

`validate` is the verb. The `test_*` functions run one check each and keep the names that people's notebooks hold.
"""

# ruff: noqa: PT028 -- the test_* functions are the product, not tests: their config may be left out

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.checks import causality, gradients, initialisation, memory, rows, shapes, speed, stability
from utils.checks.report import CheckResult, Report
from utils.checks.runner import Check
from utils.checks.sampling import Sampler
from utils.errors import ConfigError

if TYPE_CHECKING:
    from utils.loading.model_loader import LoadedModel

    Model = AdaptedModel | LoadedModel | nn.Module

__all__ = [
    "run_all_tier1_tests",
    "test_gradient_flow",
    "test_inference_speed",
    "test_memory_footprint",
    "test_output_stability",
    "test_parameter_initialization",
    "test_shape_robustness",
    "validate",
]

Notify = Callable[[int, "int | None", str], None]

TIER1: tuple[Check, ...] = (
    shapes.check,
    gradients.check,
    stability.check,
    initialisation.check,
    causality.check,
    rows.check,
    memory.check,
    speed.check,
)
"""The checks of tier 1 in the order in which they run."""


def validate(model: Model, config: object = None, tier: int = 1, progress: Notify | None = None) -> Report:
    """Check a model and say what is wrong, why, and what to change.

    Args:
        model: an adapted model, what `load_model` gave, or an `nn.Module`, which is adapted first. It is left as it was.
        config: dict, namespace, Hugging Face config or path of a config.json, where the model brings none.
        tier: 1, the critical checks.
        progress: called as `progress(done, total, note)` before each check with its name, and once at the end.

    Returns:
        The report; `report.passed` is False when a check failed, could not finish, or when none ran.

    Raises:
        ConfigError: the tier is unknown, or nothing tells the vocabulary size.
        GraphCompletionError: the export is broken in a way that cannot be completed; the message names the node.
        CallContractError: how to call the model cannot be settled.

    Example:
        >>> report = validate(model, {"vocab_size": 256, "max_seq_len": 64})
        >>> report.passed, report.verdict
        (True, 'All 8 checks passed.')
    """
    if tier != 1:
        raise ConfigError(f"tier={tier!r} is not part of this release; it offers tier=1, the critical checks.")
    adapted, sampler = _prepared(model, config)
    results: list[CheckResult] = []
    for done, check in enumerate(TIER1):
        if progress is not None:
            progress(done, len(TIER1), check.check_name)  # type: ignore[attr-defined]
        results.append(check(adapted, sampler))
    report = Report(f"Tier 1: {adapted.name}", results)
    if progress is not None:
        progress(len(TIER1), len(TIER1), report.verdict)
    return report


def run_all_tier1_tests(model: Model, config: object = None) -> Report:
    """Run every check of tier 1; the same as `validate(model, config)`."""
    return validate(model, config)


def test_shape_robustness(model: Model, config: object = None) -> CheckResult:
    """Run the model at every batch size and length up to its limit, and one token beyond."""
    return _single(shapes.check, model, config)


def test_gradient_flow(model: Model, config: object = None) -> CheckResult:
    """Look at the gradient of every parameter: missing, zero, vanishing, exploding, NaN; modules never called."""
    return _single(gradients.check, model, config)


def test_output_stability(model: Model, config: object = None) -> CheckResult:
    """Look for NaN, extreme or constant logits, randomness in eval mode, and disagreement of mixed precision."""
    return _single(stability.check, model, config)


def test_parameter_initialization(model: Model, config: object = None) -> CheckResult:
    """Compare the first loss with ln V, and the scale of each layer with its kind."""
    return _single(initialisation.check, model, config)


def test_memory_footprint(model: Model, config: object = None) -> CheckResult:
    """Measure what a training step keeps in memory, and say whether a T4 holds it."""
    return _single(memory.check, model, config)


def test_inference_speed(model: Model, config: object = None) -> CheckResult:
    """Time the forward pass per batch and length."""
    return _single(speed.check, model, config)


for _function in (
    test_shape_robustness,
    test_gradient_flow,
    test_output_stability,
    test_parameter_initialization,
    test_memory_footprint,
    test_inference_speed,
):
    _function.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect them


def _single(check: Check, model: Model, config: object) -> CheckResult:
    return check(*_prepared(model, config))


def _prepared(model: Model, config: object) -> tuple[AdaptedModel, Sampler]:
    adapted = adapt(model, config)
    return adapted, Sampler.of(adapted, config)
