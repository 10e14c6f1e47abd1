"""All seeded faults, what the checks say about them and about their healthy twins, and the totals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.checks.corpus.attention_faults import ATTENTION_FAULTS
from tests.checks.corpus.entry import Fault
from tests.checks.corpus.other_faults import OTHER_FAULTS
from tests.checks.corpus.signal_faults import SIGNAL_FAULTS
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.report import CheckResult
from utils.checks.runner import Check
from utils.checks.sampling import Sampler
from utils.tier1_critical_validation import TIER1

FAULTS: tuple[Fault, ...] = (*ATTENTION_FAULTS, *SIGNAL_FAULTS, *OTHER_FAULTS)

CHECKS: dict[str, Check] = {check.name: check for check in TIER1}
"""The checks of tier 1 by name."""

FLAGGED = ("warn", "fail")
FLAGGED_SHARE = 0.95
"""Smallest share of faults that the responsible check must flag."""
MENDED_SHARE = 0.8
"""Smallest share of the faults with a known cure that a patch must mend."""


@dataclass
class Row:
    """What the checks say about one model.

    Attributes:
        name: of the fault, or of the healthy model.
        fault: what was planted; None for a healthy model.
        results: of every check that ran.
        error: why the model could not be examined at all; empty where it could.
    """

    name: str
    fault: Fault | None
    results: list[CheckResult]
    error: str = ""

    @property
    def flagged(self) -> dict[str, str]:
        """Check → status, of what is neither passed nor skipped."""
        return {result.name: result.status for result in self.results if result.status in FLAGGED}

    @property
    def caught(self) -> bool:
        """Whether the responsible check flags the fault."""
        return self.fault is not None and self.fault.check in self.flagged

    @property
    def sound(self) -> bool:
        """Whether no check complains."""
        return not self.flagged and not self.error


def examine(name: str, model: AdaptedModel, checks: Iterable[Check], fault: Fault | None = None) -> Row:
    """Run the checks on one model."""
    sampler = Sampler.of(model)
    return Row(name, fault, [check(model, sampler) for check in checks])


def examine_fault(fault: Fault, checks: Iterable[Check]) -> Row:
    """Run the checks on a faulty model; one that cannot even be adapted is a row with its error."""
    try:
        return examine(fault.name, fault.build(), checks, fault)
    except Exception as error:  # noqa: BLE001 - the table shows it, and the fault counts as missed
        return Row(fault.name, fault, [], f"{type(error).__name__}: {error}")


def twins(faults: Sequence[Fault]) -> dict[str, Fault]:
    """One fault for every different healthy twin, by the twin's name."""
    found: dict[str, Fault] = {}
    for fault in faults:
        settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in fault.config.items())
        found.setdefault(f"{fault.base} ({settings})" if settings else fault.base, fault)
    return found


def responsible(check: str) -> list[Fault]:
    """The faults for which a check is responsible."""
    return [fault for fault in FAULTS if fault.check == check]
