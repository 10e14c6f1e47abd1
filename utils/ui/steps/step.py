"""What the shell of the wizard asks of a step, and what a step may ask of the shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from utils.errors import TransformerBuilderError
from utils.ui.work import readable

if TYPE_CHECKING:
    from utils.progress import ProgressCallback
    from utils.ui.decisions.setup import Setup
    from utils.ui.work import Job, Outcome

Tone = Literal["info", "good", "bad", "busy"]
"""How the message line speaks."""


class Step(Protocol):
    """One page of the wizard. It is made when it is first shown, with the shell as its only argument.

    Attributes:
        view: the widget that is shown between header and buttons.
    """

    view: Any

    def enter(self) -> None:
        """It comes on screen: bring the view up to what was decided, quickly; long work goes to `shell.work`."""

    def leave(self) -> str:
        """The person wants the next step: empty where nothing is missing, else what is, and what to do."""


class Shell(Protocol):
    """What a step sees of the wizard.

    Attributes:
        setup: everything that was decided and found; no widget.
        may_begin: whether a step may begin long work by itself when it comes on screen: work runs beside the page, or the
            person clicked; not while the cell that shows the wizard has to return.
    """

    setup: Setup

    @property
    def may_begin(self) -> bool:
        """See the class."""

    @property
    def busy(self) -> bool:
        """Whether work is going on."""

    def say(self, text: str, tone: Tone = "info") -> None:
        """Show text in the message line; it is escaped there."""

    def work(
        self,
        job: Job,
        show: ProgressCallback | None = None,
        done: Callable[[Outcome], None] | None = None,
        begin: str = "",
    ) -> bool:
        """Begin long work.

        Args:
            job: called with a ticket (`utils.ui.work.Ticket`).
            show: told about progress; None shows it in the message line.
            done: told how it ended. An error stands in the message line by then.
            begin: what the message line says until something is reported.

        Returns:
            False where other work is going on, which the message line says; nothing is begun then.
        """

    def stop(self, note: str = ...) -> None:
        """Ask the work to stop."""

    def go(self, place: int) -> None:
        """Show the step at a place (0 for the first), without asking the present one."""

    def show_results(self) -> None:
        """Show the page that follows the five steps."""


def begin(shell: Shell, missing: str, job: Job, done: Callable[[Outcome], None], note: str) -> bool:
    """Begin the work of a step's button, or say what is missing for it; whether it was begun."""
    if missing:
        shell.say(missing, "bad")
        return False
    return shell.work(job, done=done, begin=note)


def said(shell: Shell, call: Callable[..., None]) -> Callable[..., None]:
    """`call`, with what it refuses said in the message line: no page shows an exception of a widget's callback."""

    def tried(*given: Any) -> None:
        try:
            call(*given)
        except (TransformerBuilderError, OSError) as error:
            shell.say(readable(error), "bad")

    return tried
