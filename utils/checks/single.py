"""One check by itself, as the `test_*` functions of the tiers give it to people's notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.checks.report import CheckResult
from utils.checks.runner import Check
from utils.checks.session import prepared
from utils.errors import CheckError

if TYPE_CHECKING:
    from utils.checks.session import AnyModel


def finished(check: Check, model: AnyModel, config: object) -> CheckResult:
    """The result of one check.

    Raises:
        CheckError: it could not finish.
    """
    result = check(*prepared(model, config))
    if result.unfinished:
        raise CheckError(f"{result.name}: {result.unfinished} {result.cause}. {result.fix}")
    return result


def as_dict(result: CheckResult) -> dict[str, Any]:
    """What was measured, with passed, status, headline, cause and fix."""
    words = {name: getattr(result, name) for name in ("status", "headline", "cause", "fix")}
    return {**result.measured, "passed": result.passed, **words}
