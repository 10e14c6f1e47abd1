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


class Check:
    """A check by its name: it leaves the model as it was, and always ends with a result.

    A body that raises, or takes more than `limits` allow, ends as "fail" with the reason in the headline and in
    `unfinished`: never as a crash of the run, never as passed.

    Args:
        name: what the report calls it, e.g. "gradient flow".
        body: looks at the model; may run, train and hook it.
        screen: a moment's look that may spare the long one where many copies of a model are compared: what it does not
            pass, the check does not pass either.

    Example:
        >>> check = Check("odd", lambda adapted, sampler: CheckResult("", "pass", f"{sampler.vocabulary} ids"))
        >>> check(adapted).headline
        '61 ids'
    """

    __name__: str  # of the body, as is what else tells where it stands

    def __init__(self, name: str, body: Body, screen: Check | None = None) -> None:
        functools.update_wrapper(self, body)
        self.name, self.body, self.screen = name, body, screen

    def __call__(
        self, adapted: AdaptedModel, sampler: Sampler | None = None, limits: Limits | None = None
    ) -> CheckResult:
        """The result of the check on one model."""
        started = time.perf_counter()
        try:
            with preserved(adapted), bounded(limits or Limits()):
                result = self.body(adapted, sampler if sampler is not None else Sampler.of(adapted))
        except Exception as error:  # the report shows it; the run goes on with the next check
            logger.info("check %r on %s did not finish", self.name, adapted.name, exc_info=error)
            result = _unfinished(self.name, adapted, error)
        result.name, result.seconds = self.name, time.perf_counter() - started
        return result


def model_check(name: str, screen: Check | None = None) -> Callable[[Body], Check]:
    """Decorate `body(adapted, sampler) -> CheckResult` into a `Check`."""
    return lambda body: Check(name, body, screen)


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
