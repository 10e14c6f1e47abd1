"""The view of step 5: everything on one page, and the button that starts."""

from __future__ import annotations

from typing import Any

from utils.ui import widgets
from utils.ui.steps.step import Shell
from utils.ui.work import Outcome, Ticket

INTRO = "Look it over and start. Every step can still be changed: press its name above."
IN_A_CELL = (
    "On Colab the training runs in this page's cell; its interrupt button (■) stops it and saves the step that runs."
)


class ReviewStep:
    """The summary and the start."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.review, self.results = shell, shell.setup.review, shell.setup.results
        self._summary = widgets.html_block("tb-summary")
        self._start = widgets.button("Start the training", "tb-start", click=self.start, style="success", icon="play")
        self._anew = widgets.button("Begin a new run", "tb-anew", click=self.start_anew, icon="repeat")
        self._see = widgets.button("See the run", "tb-see", click=shell.show_results, icon="line-chart")
        self.view = widgets.column(
            widgets.style_sheet("results.css"),
            widgets.intro(INTRO),
            self._summary,
            widgets.row(self._start, self._anew, self._see, classes=["tb-actions"]),
            classes=["tb-step", "tb-review"],
        )

    def enter(self) -> None:
        """Show what was decided; read what nobody looked at yet where that can run beside the page."""
        self._paint()
        waiting = not self.results.prepared and not self.review.problems()
        if self.shell.may_begin and not self.shell.busy and waiting:
            self.shell.work(self._prepare, done=lambda _: self._paint(), begin="Reading model and data …")
            self._paint()  # nothing is started while this goes on

    def leave(self) -> str:
        """Nothing follows but the results."""
        return ""

    def start(self) -> None:
        """Train, go on where a run was stopped, or show the results of a finished one."""
        self._begin(anew=False)

    def start_anew(self) -> None:
        """Train from the beginning, beside the earlier run."""
        self._begin(anew=True)

    def _begin(self, anew: bool) -> None:
        problems = self.review.problems()
        if problems:
            self.shell.say("\n".join(problems), "bad")
            return
        if self.shell.busy:
            self.shell.say("Something is still being done. Wait for it, or press Stop.", "bad")
            return
        self.shell.show_results()  # where the training is seen; it begins there
        begin_training(self.shell, anew)

    def _prepare(self, ticket: Ticket) -> Any:
        return self.results.prepare(ticket)

    def _paint(self) -> None:
        self._summary.value = widgets.text_html(
            "review.html",
            sections=self.review.sections(),
            plan=[*self.review.plan(), *([] if self.shell.may_begin else [IN_A_CELL])],
            warnings=self.review.warnings(),
            problems=self.review.problems(),
        )
        self._start.description = "Continue the training" if self.results.goes_on else "Start the training"
        self._start.disabled = bool(self.review.problems()) or self.shell.busy
        widgets.show(self._anew, bool(self.results.form.name))
        widgets.show(self._see, bool(self.results.form.name) or self.shell.busy)


def begin_training(shell: Shell, anew: bool = False) -> bool:
    """Begin the training as the shell's work; whoever watches `Results.live` sees it."""
    results = shell.setup.results

    def ended(outcome: Outcome) -> None:
        results.live.end(outcome)
        if outcome.done:
            shell.say("The training is finished.", "good")
        elif outcome.stopped:
            saved = "Stopped and saved. Continue goes on exactly there."
            shell.say(
                saved if results.interrupted else "Stopped before the first step: nothing was trained or saved yet."
            )

    return shell.work(
        lambda ticket: results.train(ticket, anew=anew),
        show=results.live.prepare,
        done=ended,
    )
