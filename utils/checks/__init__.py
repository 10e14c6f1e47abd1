"""The checks of a model, one per file. Each looks at an adapted model and leaves it exactly as it was.

A check is a function `check(adapted, sampler=None) -> CheckResult` decorated with `model_check` (runner.py); a new one is
one new file and one entry in the tier that runs it (`utils/tier1_critical_validation.py`, `utils/tier2_advanced_analysis.py`).
`report.py` holds what comes out, `preserved.py` the promise to leave no trace, `sampling.py` the inputs, `inspection.py` the
looking-at-modules that several checks share. Adapting a model and choosing which checks run is left to the tiers.
"""

from __future__ import annotations

from utils.checks.preserved import preserved
from utils.checks.report import CheckResult, Report
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler

__all__ = ["CheckResult", "Report", "Sampler", "model_check", "preserved"]
