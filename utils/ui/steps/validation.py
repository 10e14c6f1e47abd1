"""The view of step 1: is the model sound? Live rows, fixes one click away."""

from __future__ import annotations

from typing import Any

from utils.ui import widgets
from utils.ui.steps.step import Shell
from utils.ui.work import Job, Outcome

INTRO = (
    "Before any training, a few quick checks tell whether the model can learn at all: shapes, gradients, attention that does "
    "not look ahead, saving and loading."
)
STATUS_WORDS = {
    "wait": "waiting",
    "run": "running",
    "pass": "passed",
    "warn": "look",
    "fail": "failed",
    "skip": "skipped",
}


class ValidationStep:
    """Rows of checks, and buttons to check, to look for fixes, to apply them and to take them back."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.decision = shell, shell.setup.validation
        self._facts = widgets.html_block("tb-model")
        self._rows = widgets.html_block("tb-check-rows")
        self._verdict = widgets.html_block("tb-verdict")
        self._check = widgets.button("Check", "tb-check-again", click=self.check, icon="refresh", style="primary")
        self._look = widgets.button("Look for fixes", "tb-look", click=self.look, icon="search")
        self._mend = widgets.button("Apply the fixes", "tb-mend", click=self.mend, icon="wrench", style="success")
        self._undo = widgets.button("Take the fixes back", "tb-unmend", click=self.undo, icon="undo")
        self._anyway = widgets.checkbox("Go on anyway", "tb-anyway", value=self.decision.form.anyway)
        widgets.on_change(self._anyway, self.decision.go_on_anyway)
        self.view = widgets.column(
            widgets.intro(INTRO),
            self._facts,
            self._verdict,
            widgets.row(self._check, self._look, self._mend, self._undo, self._anyway, classes=["tb-actions"]),
            self._rows,
            classes=["tb-step", "tb-validation"],
        )

    def enter(self) -> None:
        """Show what is known; begin the checks where they can run beside the page and none was made."""
        self._paint()
        if self.shell.may_begin and not self.decision.form.verdict and not self.shell.busy:
            self.check()

    def leave(self) -> str:
        """Empty where the checks passed, or the person goes on anyway."""
        return self.decision.problem()

    def check(self) -> None:
        """Run the checks."""
        self._begin(lambda ticket: self.decision.check(ticket, self._paint_rows), "Reading the model …")

    def look(self) -> None:
        """Look for fixes of what is not green."""
        self._begin(
            lambda ticket: self.decision.look_for_fixes(ticket, self._paint_rows),
            "Looking for fixes, half a minute at most …",
        )

    def mend(self) -> None:
        """Apply the known fixes and check again."""
        self._begin(
            lambda ticket: self.decision.mend(ticket, self._paint_rows), "Applying the fixes and checking again …"
        )

    def undo(self) -> None:
        """Go back to the model as it came."""
        self.decision.use_original()
        self._paint()
        self.shell.say("The model is as it came again. Press Check.")

    def _begin(self, job: Job, begin: str) -> None:
        if self.shell.work(job, done=self._ended, begin=begin):
            self._paint_buttons()

    def _ended(self, outcome: Outcome) -> None:
        self._paint()
        if outcome.done and isinstance(outcome.value, int) and outcome.value == 0:
            self.shell.say("No known fix turns these checks green. The rows say what to change in the model.")

    def _paint(self) -> None:
        self._paint_facts()
        self._paint_rows()
        self._paint_buttons()

    def _paint_rows(self) -> None:
        self._rows.value = widgets.text_html("check_rows.html", rows=self.decision.rows, words=STATUS_WORDS)

    def _paint_facts(self) -> None:
        adapted, mended = self.decision.adapted, self.decision.mended
        if adapted is None:
            self._facts.value = ""
            return
        self._facts.value = widgets.text_html(
            "model_facts.html",
            name=adapted.name,
            facts=_facts(adapted),
            diff=adapted.completion.diff if mended is None else "",
            fixed=[] if mended is None else [cure for _, cure in mended.steps],
            fixes_diff="" if mended is None else mended.diff,
        )

    def _paint_buttons(self) -> None:
        form, idle = self.decision.form, not self.shell.busy
        self._verdict.value = widgets.text_html("verdict.html", form=form) if form.verdict and idle else ""
        self._check.description = "Check again" if form.verdict else "Check"
        for button in (self._check, self._look, self._mend, self._undo):
            button.disabled = not idle
        widgets.show(self._look, bool(self.decision.without_fix) and not self.decision.fixes)
        widgets.show(self._mend, bool(self.decision.fixes))
        widgets.show(self._undo, form.mended)
        widgets.show(self._anyway, bool(form.verdict) and not form.passed)


def _facts(adapted: Any) -> list[str]:
    """Size, task and vocabulary in a few words each."""
    contract = adapted.contract
    parameters = sum(parameter.numel() for parameter in adapted.parameters())
    facts = [f"{parameters:,} parameters", f"task: {contract.task}"]
    facts += [f"{contract.vocab_size:,} vocabulary rows"] if contract.vocab_size else []
    return [*facts, f"up to {contract.max_length:,} tokens"] if contract.max_length else facts
