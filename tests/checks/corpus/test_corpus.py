"""Every seeded fault is flagged by the check that is responsible, and no healthy twin by any."""

from __future__ import annotations

import pytest

from tests.checks.corpus import __main__ as command
from tests.checks.corpus.entry import Fault, source_of
from tests.checks.corpus.table import CHECKS, FAULTS, examine, examine_fault, responsible, twins
from utils.checks.report import CheckResult
from utils.checks.runner import model_check

MEASURE_ONLY = {"memory", "inference speed"}
"""Checks that report figures and find no model guilty; `tests/checks/test_figures.py` holds their figures."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_responsible_check_flags_the_fault(fault):
    row = examine_fault(fault, [CHECKS[fault.check]])
    assert row.caught, row.error or row.results[0].summary()
    assert row.results[0].fix


@pytest.mark.slow  # every check on every twin
@pytest.mark.parametrize(
    ("name", "fault"), twins(FAULTS).items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_check_complains_about_a_healthy_twin(name, fault):
    row = examine(name, fault.build_twin(), CHECKS.values())
    assert row.sound, "\n".join(result.summary() for result in row.results if result.name in row.flagged)


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in MEASURE_ONLY])
def test_a_check_that_is_switched_off_is_noticed(name):
    """The tests above rest on each check alone: with one that always passes in its place, its faults go unseen."""
    off = model_check(name)(lambda adapted, sampler: CheckResult(name, "pass", "switched off"))
    faults = responsible(name)[:2]
    assert len(faults) == 2
    assert [fault.name for fault in faults if examine_fault(fault, [off]).caught] == []


def test_each_fault_differs_from_its_twin_and_is_named_once():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 48
    assert [fault.name for fault in FAULTS if fault.source == source_of(fault.base)] == []


def test_a_change_that_fits_nowhere_is_an_error():
    fault = Fault("nothing", "gpt", "causality", {"no such piece": ""})
    with pytest.raises(ValueError, match=r"stands 0 times in bases/gpt\.py"):
        _ = fault.source


def test_a_model_that_cannot_be_adapted_counts_as_missed():
    fault = Fault(
        "no call", "lstm", "causality", {"def forward(self, input_ids):": "def forward(self, input_ids, a, b, c):"}
    )
    row = examine_fault(fault, CHECKS.values())
    assert "Error" in row.error
    assert not row.caught


@pytest.mark.parametrize(("switched_off", "code"), [(False, 0), (True, 1)])
def test_the_command_prints_the_table_and_ends_with_1_below_the_bar(switched_off, code, monkeypatch, capsys):
    fault = responsible("causality")[0]
    off = model_check("causality")(lambda adapted, sampler: CheckResult("causality", "pass", "switched off"))
    checks = {"causality": off if switched_off else CHECKS["causality"]}
    monkeypatch.setattr(command, "FAULTS", (fault,))
    monkeypatch.setattr(command, "CHECKS", checks)
    assert command.main(["--verbose"]) == code
    printed = capsys.readouterr().out
    assert fault.name in printed
    assert ("MISSED" in printed) == switched_off
    assert "0 of 1 healthy twins" in printed
