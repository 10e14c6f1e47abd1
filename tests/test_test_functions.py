from __future__ import annotations

from types import SimpleNamespace

import pytest
from checks import models as m

from utils import test_functions, tier1_critical_validation, tier2_advanced_analysis, tier3_training_utilities
from utils.errors import CheckError
from utils.training import hyperparameter_search

CONFIG = SimpleNamespace(vocab_size=m.VOCABULARY, max_seq_len=m.LIMIT)


def test_shapes_come_as_the_documented_table():
    table = test_functions.test_shape_robustness(m.Healthy(layers=1), CONFIG)
    assert list(table.columns) == ["Input Shape", "Output Shape", "Status"]
    assert set(table["Status"]) == {"✅ Pass"}
    assert table.iloc[0].tolist()[:2] == ["(1, 1)", f"(1, 1, {m.VOCABULARY})"]
    broken = test_functions.test_shape_robustness(m.FixedBatch(), CONFIG)
    wrong = broken[broken["Status"].str.startswith("❌")]
    assert 0 < len(wrong) < len(broken) and wrong["Status"].str.contains("expected").any()
    raised = broken[broken["Output Shape"] == "N/A"]
    assert len(raised) and raised["Status"].str.contains("FixedBatch raised").all()


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (
            "test_gradient_flow",
            {"max_gradient", "min_gradient", "has_vanishing_gradients", "has_exploding_gradients", "table"},
        ),
        ("test_output_stability", {"max_abs_logit", "table"}),
        ("test_inference_speed", {"device", "table"}),
        ("test_attention_patterns", {"table", "kinds", "heads"}),
        ("test_attribution_analysis", {"table", "completeness_gap", "difference"}),
    ],
)
def test_figures_come_as_a_dict_with_status_and_words(name, keys):
    found = getattr(test_functions, name)(m.Healthy(layers=1), CONFIG)
    assert keys | {"status", "passed", "headline", "cause", "fix"} <= set(found)
    assert (found["status"], found["passed"]) == ("pass", True)


@pytest.mark.parametrize(
    ("name", "column", "rows"),
    [
        ("test_parameter_initialization", "parameter", 6),
        ("test_memory_footprint", "part", 5),
        ("test_robustness", "KL", 5),
    ],
)
def test_tables_come_as_dataframes(name, column, rows):
    table = getattr(test_functions, name)(m.Healthy(layers=1))
    assert column in table.columns and len(table) >= rows


def test_a_check_that_cannot_finish_raises():
    with pytest.raises(CheckError, match=r"RaisesInTraining raised ValueError.*no training today"):
        test_functions.test_gradient_flow(m.RaisesInTraining(), CONFIG)


def test_pytest_does_not_collect_them():
    functions = [getattr(test_functions, name) for name in test_functions.__all__ if name.startswith("test_")]
    assert functions and not any(function.__test__ for function in functions)


def test_names_are_handed_on_not_copied():
    for name in test_functions.__all__:
        tiers = (
            tier1_critical_validation,
            tier2_advanced_analysis,
            tier3_training_utilities,
            hyperparameter_search,
        )
        homes = [tier for tier in tiers if hasattr(tier, name)]
        assert [getattr(home, name) for home in homes] == [getattr(test_functions, name)]
