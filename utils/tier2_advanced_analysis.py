"""Tier 2: what goes on inside a model. Holds which analyses run, in which order; no analysis itself.

`utils.validate(model, tier=2)` runs them all. They inform: none of them decides whether a model is sound, as tier 1 does.
"""

# ruff: noqa: PT028 -- the test_* functions are the product, not tests: their config may be left out

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.checks import (
    attention_patterns,
    attribution,
    dead_neurons,
    effective_rank,
    layer_similarity,
    robustness,
)
from utils.checks.runner import Check
from utils.checks.single import as_dict, finished

if TYPE_CHECKING:
    import pandas as pd

    from utils.checks.session import AnyModel

__all__ = ["TIER2", "test_attention_patterns", "test_attribution_analysis", "test_robustness"]

TIER2: tuple[Check, ...] = (
    attention_patterns.check,
    attribution.check,
    robustness.check,
    effective_rank.check,
    layer_similarity.check,
    dead_neurons.check,
)
"""The checks of tier 2 in the order in which they run."""


def test_attention_patterns(model: AnyModel, config: object = None) -> dict[str, Any]:
    """Describe each attention head: its kind, entropy, sparsity, distance, and its nearest twin.

    Returns:
        A table with one row per head, how many heads are of each kind, and status, headline, cause and fix. Without a
        table where the model has no attention.
    """
    return as_dict(finished(attention_patterns.check, model, config))


def test_attribution_analysis(model: AnyModel, config: object = None) -> dict[str, Any]:
    """Explain the model's answer on a random input by integrated gradients.

    Returns:
        A table with one row per token (or field of an image), completeness_gap, the difference that is explained, and
        status, headline, cause and fix.
    """
    return as_dict(finished(attribution.check, model, config))


def test_robustness(model: AnyModel, config: object = None) -> pd.DataFrame:
    """Change the input a little: one row per change and amount, with KL divergence (nats) and top-1 agreement."""
    return finished(robustness.check, model, config).details


for _function in (test_attention_patterns, test_attribution_analysis, test_robustness):
    _function.__test__ = False  # type: ignore[union-attr]  # pytest must not collect them
