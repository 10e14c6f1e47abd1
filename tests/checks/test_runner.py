from __future__ import annotations

import pytest

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks.report import CheckResult
from utils.checks.runner import model_check


def test_an_exception_becomes_an_error_that_names_the_model_and_the_place():
    @model_check("odd")
    def check(adapted, sampler):
        raise ZeroDivisionError("by zero")

    result = check(adapt(m.Healthy()))
    assert (result.name, result.status, result.passed) == ("odd", "fail", False)
    assert "Healthy: ZeroDivisionError: by zero" in result.headline
    assert result.unfinished == result.headline
    assert "test_runner.py" in result.cause
    assert result.seconds > 0


def test_an_interrupt_is_not_swallowed():
    @model_check("stopped")
    def check(adapted, sampler):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(adapt(m.Healthy()))


def test_name_and_time_are_filled_in():
    @model_check("named")
    def check(adapted, sampler):
        return CheckResult("", "pass", f"{sampler.vocabulary} ids")

    result = check(adapt(m.Healthy()))
    assert (result.name, result.headline) == ("named", "61 ids")
    assert check.name == "named"
