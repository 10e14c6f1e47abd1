from __future__ import annotations

from types import SimpleNamespace

import pytest
from checks import models as m

from utils import test_functions, tier1_critical_validation
from utils.checks.report import CheckResult

SINGLE = {
    "test_shape_robustness": "shape robustness",
    "test_gradient_flow": "gradient flow",
    "test_output_stability": "numerical stability",
    "test_parameter_initialization": "initialisation",
    "test_memory_footprint": "memory",
    "test_inference_speed": "inference speed",
}


@pytest.mark.parametrize(("name", "check"), SINGLE.items())
def test_each_documented_function_runs_its_check(name, check):
    function = getattr(test_functions, name)
    result = function(m.Healthy(layers=1), SimpleNamespace(vocab_size=m.VOCABULARY, max_seq_len=m.LIMIT))
    assert isinstance(result, CheckResult)
    assert (result.name, result.status) == (check, "passed")
    assert function(m.Healthy(layers=1)).status == "passed"
    assert function.__test__ is False


def test_names_are_handed_on_not_copied():
    for name in test_functions.__all__:
        assert getattr(test_functions, name) is getattr(tier1_critical_validation, name)
