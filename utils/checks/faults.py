"""Several faults that one check saw, joined into its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.checks.report import CheckResult, Status


@dataclass
class Fault:
    """One fault in words: how bad, what was seen, why, and what to change."""

    status: Status
    finding: str
    cause: str
    fix: str


def judged(name: str, faults: Sequence[Fault], fine: str, details: dict[str, Any], note: str = "") -> CheckResult:
    """The result of a check: "pass" with the finding `fine` where there is no fault, else the worst status.

    Args:
        name: of the check.
        faults: what was seen, the most important first.
        fine: finding of a check without faults.
        details: figures in plain types.
        note: a sentence that is added to the finding either way.
    """
    if not faults:
        return CheckResult(name, "pass", " ".join(filter(None, [fine, note])), measured=details)
    status: Status = "fail" if any(fault.status == "fail" for fault in faults) else "warn"
    finding = " ".join(filter(None, [*(fault.finding for fault in faults), note]))
    return CheckResult(
        name, status, finding, " ".join(f.cause for f in faults), " ".join(f.fix for f in faults), details
    )
