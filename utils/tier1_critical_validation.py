"""Tier 1: the checks that decide whether a model is sound. Holds which checks run, in which order; no check itself.

`validate` is the verb. The `test_*` functions run one check each and keep the names and the shapes that people's notebooks
hold.
"""

# ruff: noqa: PT028 -- the test_* functions are the product, not tests: their config may be left out

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.checks import (
    accumulation,
    causality,
    determinism,
    gradients,
    initialisation,
    learning,
    memory,
    padding,
    positions,
    round_trip,
    rows,
    shapes,
    speed,
    stability,
)
from utils.checks.report import TABLE, CheckCallback, CheckResult, Report, ignore_check
from utils.checks.runner import Check, model_check
from utils.checks.session import Session
from utils.checks.single import as_dict, finished
from utils.errors import ConfigError
from utils.progress import ProgressCallback, showing

if TYPE_CHECKING:
    import pandas as pd

    from utils.adapters.model_adapter import AdaptedModel
    from utils.checks.sampling import Sampler
    from utils.checks.session import AnyModel

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


@model_check("export dry run")
def _export_dry_run(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Try the exporters; imported when it runs, since they stand above the checks and take seconds to import."""
    from utils.export import dry_run

    return dry_run.check.body(adapted, sampler)


TIER1: tuple[Check, ...] = (
    shapes.check,
    gradients.check,
    stability.check,
    initialisation.check,
    causality.check,
    rows.check,
    padding.check,
    determinism.check,
    positions.check,
    round_trip.check,
    learning.check,
    accumulation.check,
    memory.check,
    speed.check,
    _export_dry_run,
)
"""The checks of tier 1 in the order in which they run."""


def validate(
    model: AnyModel,
    config: object = None,
    tier: int = 1,
    progress: bool | ProgressCallback = False,
    *,
    seconds_per_check: float | None = 300.0,
    memory_limit_gb: float | None = None,
    isolated: bool = False,
    patches: bool = True,
    on_check: CheckCallback = ignore_check,
) -> Report:
    """Check a model and say what is wrong, why, and what to change.

    Args:
        model: an adapted model, what `load_model` gave, or an `nn.Module`, which is adapted first. It is left as it was.
        config: dict, namespace, Hugging Face config or path of a config.json, where the model brings none.
        tier: 1, the critical checks; 2, the analysis of what goes on inside.
        progress: True shows a bar with the running check and the time left; a callable is called as
            `progress(done, total, note)` before each check with its name, and once at the end.
        seconds_per_check: a check that takes longer is ended and has failed; None: no bound.
        memory_limit_gb: how much a check may add to the memory of the process, in GB (10**9 bytes); None allows four
            fifths of what is free.
        isolated: run the checks in a process of their own, which also survives a model that crashes, hangs in one call,
            or takes all memory at once; costs the start of a process.
        patches: look for a change of the model's source that turns a check green, re-tested on a copy, for at most
            half a minute; `report.apply(check)` gives the report of the patched copy. Nothing is looked for where the source is
            not known.
        on_check: given each result as soon as it is there.

    Returns:
        The report; `report.passed` is False when a check failed or could not finish, when none ran, and when the run was
        interrupted, which keeps what is done.

    Raises:
        ConfigError: the tier is unknown, a bound is no positive number, or nothing tells the vocabulary size.
        CheckError: finding out how the model is called passed a bound, or it cannot be sent to another process.
        GraphCompletionError: the export is broken in a way that cannot be completed; the message names the node.
        CallContractError: how to call the model cannot be settled.

    Example:
        >>> report = validate(model, {"vocab_size": 256, "max_seq_len": 64})
        >>> report.passed, report.verdict
        (True, 'All 15 checks passed.')
    """
    checks = _checks_of(tier)
    session = Session.of(f"Tier {tier}", model, config, seconds_per_check, memory_limit_gb, isolated)
    with showing(progress, f"Tier {tier}", unit="checks") as show:
        return session.run(checks, show, bool(patches), on_check)


def _checks_of(tier: int) -> tuple[Check, ...]:
    """The checks of a tier; the second is imported only when somebody asks for it."""
    if tier == 1:
        return TIER1
    if tier == 2:
        from utils.tier2_advanced_analysis import TIER2

        return TIER2
    raise ConfigError(f"tier={tier!r} is unknown; there are tier=1, the critical checks, and tier=2, the analysis.")


def run_all_tier1_tests(model: AnyModel, config: object = None) -> Report:
    """Run every check of tier 1; the same as `validate(model, config)`."""
    return validate(model, config)


def test_shape_robustness(model: AnyModel, config: object = None) -> pd.DataFrame:
    """Run the model at every batch size and length up to its limit, and one token beyond.

    Returns:
        One row per shape: Input Shape and Output Shape as text, Status "✅ Pass", or "❌ " and the reason.
    """
    import pandas as pd

    result = finished(shapes.check, model, config)
    found = [
        {
            "Input Shape": row["input"],
            "Output Shape": row["output"] or "N/A",
            "Status": "✅ Pass" if row["status"] == shapes.OK else f"❌ {row['status']}",
        }
        for row in result.measured[TABLE]
    ]
    return pd.DataFrame(found, columns=["Input Shape", "Output Shape", "Status"])


def test_gradient_flow(model: AnyModel, config: object = None) -> dict[str, Any]:
    """Look at the gradient of every parameter: missing, zero, vanishing, exploding, NaN; modules never called.

    Returns:
        max_gradient and min_gradient (root mean squares), has_vanishing_gradients, has_exploding_gradients, the names of
        what gets none, a table, and status, headline, cause and fix.
    """
    return as_dict(finished(gradients.check, model, config))


def test_output_stability(model: AnyModel, config: object = None) -> dict[str, Any]:
    """Look for NaN, extreme or constant logits, and disagreement of mixed precision.

    Returns:
        What was measured, and status, headline, cause and fix.
    """
    return as_dict(finished(stability.check, model, config))


def test_parameter_initialization(model: AnyModel, config: object = None) -> pd.DataFrame:
    """Compare the first loss with ln V, and the scale of each layer with its kind: one row per matrix."""
    return finished(initialisation.check, model, config).details


def test_memory_footprint(model: AnyModel, config: object = None) -> pd.DataFrame:
    """Measure what a training step keeps in memory: one row per part, in GB (10**9 bytes)."""
    return finished(memory.check, model, config).details


def test_inference_speed(model: AnyModel, config: object = None) -> dict[str, Any]:
    """Time the forward pass per batch and length.

    Returns:
        A table with one row per shape, the device, and status and headline.
    """
    return as_dict(finished(speed.check, model, config))


for _function in (
    test_shape_robustness,
    test_gradient_flow,
    test_output_stability,
    test_parameter_initialization,
    test_memory_footprint,
    test_inference_speed,
):
    _function.__test__ = False  # type: ignore[union-attr]  # pytest must not collect them
