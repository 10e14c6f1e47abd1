"""Step 1 without widgets: the model in use, what its checks say, and the fixes that were applied."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CheckError

if TYPE_CHECKING:
    from utils.adapters.model_adapter import AdaptedModel
    from utils.checks.report import CheckResult, Report
    from utils.notebook import Mended
    from utils.ui.decisions.setup import Setup
    from utils.ui.work import Ticket

NAME = "validation"
MENDED_FILE = "model_mended.py"
"""In the wizard's folder: the model's source with the fixes applied."""


@dataclass(frozen=True)
class CheckRow:
    """One line of the list of checks.

    Attributes:
        name: of the check.
        status: "wait", "run", or the status of its result.
        headline, cause, fix, seconds: of its result.
        cure: what the known fix changes, in a few words; empty where none is known.
        diff: that change.
    """

    name: str
    status: str = "wait"
    headline: str = ""
    cause: str = ""
    fix: str = ""
    seconds: float = 0.0
    cure: str = ""
    diff: str = ""

    @classmethod
    def of(cls, result: CheckResult) -> CheckRow:
        """From a result."""
        patch = result.patch
        told = (result.name, result.status, result.headline, result.cause, result.fix, result.seconds)
        return cls(*told, *(("", "") if patch is None else (patch.cure, patch.diff)))


@dataclass
class ValidationForm:
    """What is kept of step 1."""

    identity: str = ""
    """Hash of the model that was checked; another one is checked anew."""
    checks: list[dict[str, Any]] = field(default_factory=list)
    """The rows of its checks."""
    verdict: str = ""
    passed: bool = False
    stopped: bool = False
    """Whether the checks were ended before the last."""
    mended: bool = False
    """Whether the model in use is the one with the fixes applied."""
    fresh_weights: bool = False
    """Whether a fix drew its weights anew."""
    anyway: bool = False
    """Whether to go on although a check failed."""


class ValidationDecision:
    """Checks the model, applies fixes, and knows which model is in use.

    Attributes:
        form: what is kept.
        rows: of all checks, in their order; empty while none was begun.
        report: of the checks; None before them, and after a restart.
        mended: what the fixes changed; None where none was applied in this process.
        adapted: the model in use; None until `prepare` or `check` made it.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._identity = identity_of(setup.given_model)
        self.form = setup.state.form(NAME, ValidationForm)
        if self.form.identity != self._identity:
            self.form = ValidationForm()
        self.rows = [_row(kept) for kept in self.form.checks]
        self.report: Report | None = None
        self.mended: Mended | None = None
        self.adapted: AdaptedModel | None = None
        self._original: AdaptedModel | None = None

    # ---- the model --------------------------------------------------------------------------------------------------
    def prepare(self) -> AdaptedModel:
        """The model in use, loaded and completed where it is not yet, with the fixes where they were applied.

        Raises:
            TransformerBuilderError: it cannot be loaded or completed.
        """
        if self.adapted is None:
            self.adapted = self._with_fixes(self._adapt()) if self.form.mended else self._adapt()
        return self.adapted

    def _adapt(self) -> AdaptedModel:
        from utils.adapters.model_adapter import adapt

        if self._original is None:
            self._original = adapt(self._given(), self._setup.given_config)
        return self._original

    def _given(self) -> Any:
        """The model as it was given, loaded where only its place was."""
        given = self._setup.given_model
        if given is not None and not isinstance(given, (str, Path)):
            return given
        import utils.examples
        from utils.loading.model_loader import load_model

        return load_model(utils.examples.path() if given is None else given)

    def _with_fixes(self, adapted: AdaptedModel) -> AdaptedModel:
        """The fixes of an earlier process, from the file that it left."""
        from utils.checks.rebuilding import UserSource, patched_model

        path, source = self._setup.folder / MENDED_FILE, UserSource.of(adapted)
        if source is None or not path.is_file():
            raise CheckError(
                f"The fixes that were applied to {adapted.name} are not in {path} any more. Press Check again in step 1."
            )
        text = path.read_bytes().decode("utf-8")
        return patched_model(adapted, source, text, self.form.fresh_weights, share=False)

    # ---- its checks -------------------------------------------------------------------------------------------------
    @property
    def checked(self) -> bool:
        """Whether the checks ran to their end."""
        return bool(self.form.verdict) and not self.form.stopped

    @property
    def fixes(self) -> list[str]:
        """Names of the checks for which a fix is known that can be applied now."""
        return [] if self.report is None else [check.name for check in self.report.checks if check.patch is not None]

    @property
    def without_fix(self) -> list[str]:
        """Names of the checks that are not green and for which no fix was looked for, or none was found."""
        if self.report is None:
            return []
        return [check.name for check in self.report.checks if check.status in ("warn", "fail") and check.patch is None]

    def check(self, ticket: Ticket, changed: Callable[[], None] = lambda: None) -> Report:
        """Run all checks, and look for fixes of those that fail.

        Args:
            ticket: of the work; a stop keeps what is done.
            changed: called whenever a row changes.

        Raises:
            TransformerBuilderError: the model cannot be loaded, completed or called.
        """
        from utils.tier1_critical_validation import TIER1, validate

        self._begin([check.name for check in TIER1], changed)
        model = self.adapted if self.adapted is not None else self.prepare()
        report = validate(
            model, patches=False, progress=self._progress(ticket, changed), on_check=self._on_check(changed)
        )
        failed = report.named("fail")
        if failed and not report.stopped:
            report.find_patches(failed, ticket.progress)
        self._keep(report)
        changed()
        return report

    def look_for_fixes(self, ticket: Ticket, changed: Callable[[], None] = lambda: None) -> int:
        """Look for fixes of everything that is not green; how many there are."""
        if self.report is not None:
            self.report.find_patches(self.without_fix, ticket.progress)
            self._keep(self.report)
            changed()
        return len(self.fixes)

    def mend(self, ticket: Ticket, changed: Callable[[], None] = lambda: None) -> Mended:
        """Apply all known fixes to a copy of the model, check it, and go on with the copy.

        Raises:
            CheckError: there is none, or the mended source does not run.
        """
        from utils import notebook

        if self.report is None or not self.fixes:
            raise CheckError("No fix is known here. Press Check again; fixes are looked for where a check fails.")
        self._begin([row.name for row in self.rows], changed)
        path = self._setup.folder / MENDED_FILE
        mended = notebook.mend(self.report, path, self._progress(ticket, changed), self._on_check(changed))
        self.mended = mended
        self.form = replace(self.form, mended=True, fresh_weights=mended.fresh_weights or self.form.fresh_weights)
        self._keep(mended.report)
        changed()
        return mended

    def use_original(self) -> None:
        """Go back to the model as it came; it is to be checked again."""
        self.adapted, self.report, self.mended, self.rows = None, None, None, []
        self.form = ValidationForm(identity=self._identity)
        self._setup.state.keep(NAME, self.form)

    def require(self, ticket: Ticket) -> AdaptedModel:
        """The model in use, for whoever trains without having walked through the steps: checked, where it was not.

        Raises:
            CheckError: a check failed, and nobody chose to go on anyway.
            TransformerBuilderError: as `check`.
        """
        if not self.form.verdict:
            self.check(ticket)
        if self.problem():
            raise CheckError(f"Training was not begun. {self.problem()}")
        return self.prepare()

    def go_on_anyway(self, wanted: bool) -> None:
        """Whether to go on although a check failed."""
        self.form = replace(self.form, anyway=wanted)
        self._setup.state.keep(NAME, self.form)

    def problem(self) -> str:
        """Why the next step is not reached yet, and what to do; empty where nothing stands in the way."""
        if not self.form.verdict:
            return "The model has not been checked yet: press Check."
        if self.form.passed or self.form.anyway:
            return ""
        fixes = "Press Apply the fixes, or change" if self.fixes else "Change"
        return f"{self.form.verdict} {fixes} the model and check again; or tick “Go on anyway”."

    # ---- keeping ----------------------------------------------------------------------------------------------------
    def _begin(self, names: list[str], changed: Callable[[], None]) -> None:
        self.rows = [CheckRow(name) for name in names]
        changed()

    def _set(self, row: CheckRow) -> None:
        self.rows = [row if other.name == row.name else other for other in self.rows]

    def _progress(self, ticket: Ticket, changed: Callable[[], None]) -> Callable[[int, int | None, str], None]:
        ended = False

        def running(done: int, total: int | None, note: str) -> None:
            nonlocal ended
            if ended or done == total:  # what comes now is the verdict
                ticket.report(done, total, note)
                return
            ended = ticket.stopping
            ticket.progress(done, total, f"Checking: {note}", at_once=True)
            self._set(CheckRow(note, "run"))
            changed()

        return running

    def _on_check(self, changed: Callable[[], None]) -> Callable[[CheckResult], None]:
        def found(result: CheckResult) -> None:
            self._set(CheckRow.of(result))
            changed()

        return found

    def _keep(self, report: Report) -> None:
        self.report = report
        if report.subject is not None:
            self.adapted = report.subject.model
        rows = {row.name: row for row in map(CheckRow.of, report.checks)}
        self.rows = [rows.get(row.name, CheckRow(row.name)) for row in self.rows]
        self.form = replace(
            self.form,
            identity=self._identity,
            checks=[asdict(row) for row in self.rows],
            verdict=report.verdict,
            passed=report.passed,
            stopped=bool(report.stopped),
        )
        self._setup.state.keep(NAME, self.form)


def identity_of(given: Any) -> str:
    """SHA-256 of what makes a given model another one: its place, or its source, parameter names and shapes."""
    if given is None or isinstance(given, (str, Path)):
        told: Any = ["place", str(given)]
    else:
        module = given if hasattr(given, "state_dict") else given.model
        shapes = [[name, list(value.shape)] for name, value in module.named_parameters()]
        told = [type(module).__qualname__, shapes, _source_of(given, module)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _source_of(given: Any, module: Any) -> Any:
    digests = getattr(getattr(given, "source", None), "sha256", None)
    if digests:
        return sorted(digests.items())
    try:
        return inspect.getsource(type(module))
    except (OSError, TypeError):  # a class without a file, as of a cell of an earlier kernel
        return ""


def _row(kept: dict[str, Any]) -> CheckRow:
    known = CheckRow.__dataclass_fields__
    return CheckRow(**{name: value for name, value in kept.items() if name in known})
