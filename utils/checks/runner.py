"""Turns the body of a check into a check: the model left as it was, time taken, an exception or a passed bound turned into a failure.

Which checks run, and in which order, is left to the tiers.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.limits import Limits, bounded
from utils.checks.preserved import preserved
from utils.checks.report import CheckResult
from utils.checks.sampling import Sampler
from utils.errors import TransformerBuilderError

logger = logging.getLogger(__name__)

Body = Callable[[AdaptedModel, Sampler], CheckResult]
Check = Callable[..., CheckResult]


def model_check(name: str) -> Callable[[Body], Check]:
    """Decorate `body(adapted, sampler) -> CheckResult` into `check(adapted, sampler=None) -> CheckResult`.

    The check carries its name as `check.check_name`. A body that raises, or takes more than `limits` allow, ends as "fail"
    with the reason in its headline and in `unfinished`: never as a crash of the run, never as passed.
    """

    def decorate(body: Body) -> Check:
        @functools.wraps(body)
        def check(adapted: AdaptedModel, sampler: Sampler | None = None, limits: Limits | None = None) -> CheckResult:
            started = time.perf_counter()
            try:
                with preserved(adapted), bounded(limits or Limits()):
                    result = body(adapted, sampler if sampler is not None else Sampler.of(adapted))
            except Exception as error:  # the report shows it; the run goes on with the next check
                logger.info("check %r on %s did not finish", name, adapted.name, exc_info=error)
                result = _unfinished(name, adapted, error)
            result.name, result.seconds = name, time.perf_counter() - started
            return result

        check.check_name = name  # type: ignore[attr-defined]
        return check

    return decorate


def _unfinished(name: str, adapted: AdaptedModel, error: Exception) -> CheckResult:
    known = isinstance(error, TransformerBuilderError)
    message = " ".join(str(error).split())
    origin = error.__cause__ or error
    headline = message if known else f"The check could not finish on {adapted.name}: {type(error).__name__}: {message}"
    return CheckResult(
        name,
        "fail",
        headline,
        unfinished=headline,
        cause=f"{type(origin).__name__} while the check ran" + (_place(origin) or ""),
        fix="Run the model on these inputs by itself, adapted(input_ids), and mend what it raises; then check again.",
    )


def _place(error: BaseException) -> str:
    """File name, line and function in which the exception began."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f", raised in {code.co_name} ({code.co_filename.rsplit('/', 1)[-1]}, line {trace.tb_lineno})"
