"""The documented `test_*` functions in one place; each lives in the module of its tier."""

from __future__ import annotations

from utils.tier1_critical_validation import (
    run_all_tier1_tests,
    test_gradient_flow,
    test_inference_speed,
    test_memory_footprint,
    test_output_stability,
    test_parameter_initialization,
    test_shape_robustness,
)
from utils.tier2_advanced_analysis import test_attention_patterns, test_attribution_analysis, test_robustness
from utils.tier3_training_utilities import test_benchmark_comparison, test_fine_tuning
from utils.training.hyperparameter_search import test_hyperparameter_search

__all__ = [
    "run_all_tier1_tests",
    "test_attention_patterns",
    "test_attribution_analysis",
    "test_benchmark_comparison",
    "test_fine_tuning",
    "test_gradient_flow",
    "test_hyperparameter_search",
    "test_inference_speed",
    "test_memory_footprint",
    "test_output_stability",
    "test_parameter_initialization",
    "test_robustness",
    "test_shape_robustness",
]
