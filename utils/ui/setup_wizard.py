"""The wizard: five steps from a model to its training, then the results. This file holds the frame around the steps.

What is decided lies in `utils.ui.decisions`, what a step shows in `utils.ui.steps`, long work in `utils.ui.work`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.progress import ignore_progress, in_notebook
from utils.ui import widgets
from utils.ui.decisions.setup import Setup
from utils.ui.work import Outcome, Worker

if TYPE_CHECKING:
    from torch import nn

    from utils.export.bundle import Bundle
    from utils.loading.model_loader import LoadedModel
    from utils.progress import ProgressCallback
    from utils.training.result import TrainingResult
    from utils.training.training_config import TrainingConfig
    from utils.ui.steps.step import Step, Tone
    from utils.ui.work import Job, Ticket

STEPS = (
    ("Model", "validation", "ValidationStep"),
    ("Data", "dataset", "DatasetStep"),
    ("Tokenizer", "tokenizer", "TokenizerStep"),
    ("Training", "training", "TrainingStep"),
    ("Start", "review", "ReviewStep"),
)
"""Name in the header, module below `utils.ui.steps`, and class of each step."""
RESULTS = ("Results", "results", "ResultsStep")
"""The page that follows them."""


class SetupWizard:
    """Leads from a model to its training without a line of code.

    Args:
        model: a module, an adapted or loaded model, whatever `load_model` takes, or None for the bundled example.
        config: what is known about the model, where it brings no config.
        folder: where state, uploads, tokenizers and runs are kept; a restarted kernel goes on from there.
        mirror: folder that outlives this machine, as `utils.notebook.drive_folder` gives it.
        data: as `data=` of `utils.train`; None lets the person choose.
        training_config: settings to begin with.
        in_thread: whether long work runs in a thread; None: everywhere but in Colab.

    Attributes:
        setup: everything that was decided and found, without widgets.

    Example:
        >>> wizard = SetupWizard(model, config)
        >>> wizard.run()                  # one cell: shows it and returns
        >>> result = wizard.train()       # the next cell: trains with what was chosen, or with the defaults
    """

    def __init__(
        self,
        model: nn.Module | LoadedModel | str | Path | None = None,
        config: object = None,
        *,
        folder: str | Path = "wizard",
        mirror: str | Path | None = None,
        data: Any = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        in_thread: bool | None = None,
    ) -> None:
        self.setup = Setup(model, config, folder=folder, mirror=mirror, data=data, training_config=training_config)
        self.worker = Worker(in_thread)
        self._pages: dict[int, Step] = {}
        self._making = threading.RLock()  # a click and the end of work may both want the same page
        self._place = min(self.setup.state.step, len(STEPS))
        self._view: Any = None
        self._cell: Any = None
        self._clicked = False  # the first step that is shown comes from a cell, every other one from a click

    # ---- what people call -------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Show the wizard below this cell and return at once; shown again, it is as it was left.

        Raises:
            MissingPackageError: ipywidgets is not installed.
        """
        from IPython.display import display

        display(self.view)

    def train(self) -> TrainingResult | None:
        """Train with what was chosen, and with the defaults where nobody chose; in Colab, this cell is where it runs.

        Work that is going on is waited for. The interrupt button ends the training with a checkpoint; called again, it goes
        on from there, and a finished training is not repeated.

        Returns:
            The result; None where the training was stopped before it had one.

        Raises:
            TransformerBuilderError: what cannot be done; the message says which step to change.
        """
        self._show_in_cell()
        show = self._show_progress if self._view is not None else ignore_progress
        outcome = self.worker.run(self._train, show, self.setup.results.live.end)
        if self._view is not None:
            told = "Stopped. Run the cell again to go on." if outcome.stopped else outcome.error
            self.say(told, "info" if outcome.stopped else "bad")
        if outcome.cause is not None:
            raise outcome.cause
        if outcome.value is not None and self._view is not None:
            self.show_results()
        return self.result

    @property
    def result(self) -> TrainingResult | None:
        """What the training gave; None before it."""
        return self.setup.results.result

    @property
    def bundle(self) -> Bundle | None:
        """What was exported; None before that."""
        return self.setup.results.bundle

    def _show_in_cell(self) -> None:
        """The training as it goes, below the cell that calls `train`; outside a notebook nothing."""
        if not in_notebook():
            return
        from IPython.display import display

        from utils.ui.steps.results import LivePanel

        if self._cell is None:
            styles = (widgets.style_sheet(), widgets.style_sheet("results.css"))
            self._cell = widgets.column(*styles, LivePanel(self).view, classes=["tb-wizard"])
        display(self._cell)

    def _train(self, ticket: Ticket) -> TrainingResult | None:
        self.setup.validation.require(ticket)
        return self.setup.results.train(ticket)

    # ---- the frame --------------------------------------------------------------------------------------------------
    @property
    def view(self) -> Any:
        """The widget; made when it is first asked for, with the step that was on screen last."""
        if self._view is None:
            self._view = self._frame()
            self.go(self._place)
            self._clicked = True
        return self._view

    def _frame(self) -> Any:
        self._tabs = [
            widgets.button(f"{place}  {name}", "tb-tab", f"tb-step-{place}", click=self._going_to(place - 1))
            for place, (name, _, _) in enumerate(STEPS, 1)
        ]
        self._message = widgets.html_block("tb-message")
        self._back = widgets.button("Back", "tb-back", click=self._go_back, icon="arrow-left")
        self._next = widgets.button("Next", "tb-next", click=self._go_on, style="primary", icon="arrow-right")
        tip = "The steps between take what fits this model and this machine"
        self._skip = widgets.button(
            "Straight to the start", "tb-skip", click=self._go_far, icon="fast-forward", tip=tip
        )
        self._stop = widgets.button("Stop", "tb-halt", click=self.stop, icon="stop", tip="Stop what is going on")
        self._body = widgets.column(classes=["tb-body"])
        self._notice = widgets.html_block("tb-notice")
        self._paint_notice()
        self.setup.state.watch(self._paint_notice)
        return widgets.column(
            widgets.style_sheet(),
            widgets.row(*self._tabs, classes=["tb-head"]),
            self._notice,
            self._body,
            self._message,
            widgets.row(self._back, self._next, self._skip, self._stop, classes=["tb-foot"]),
            classes=["tb-wizard"],
        )

    def _page(self, place: int) -> Step:
        """A step, made when it is first wanted: the first paint waits for one step only. Its view is hidden until `go`."""
        with self._making:
            if place not in self._pages:
                _, module, name = (*STEPS, RESULTS)[place]
                page = getattr(importlib.import_module(f"utils.ui.steps.{module}"), name)(self)
                widgets.show(page.view, False)
                self._body.children = [*self._body.children, page.view]
                self._pages[place] = page
            return self._pages[place]

    def _prepare_next(self) -> None:
        """Make the next step while nobody waits for it, so that Next shows it at once."""
        if self._view is not None and self._place + 1 < len(STEPS):
            self._page(self._place + 1)

    def _going_to(self, place: int) -> Callable[[], None]:
        return lambda: self.go(place)

    def go(self, place: int) -> None:
        """Show the step at a place, 0 for the first; asks nothing of the present one, whose input stays."""
        page = self._page(place)
        for other, step in list(self._pages.items()):
            widgets.show(step.view, other == place)
        self._place = place
        self._paint_frame()
        if not self.worker.busy:
            self.say("")
        self.setup.state.go(place)  # before the step may begin work, and after what the person sees first
        page.enter()

    def show_results(self) -> None:
        """Show the page that follows the five steps."""
        self.go(len(STEPS))

    def _paint_notice(self) -> None:
        """What is wrong with the wizard's own file."""
        state = self.setup.state
        told = "\n".join(filter(None, (state.lost, state.unsaved)))
        self._notice.value = widgets.text_html("message.html", text=told, tone="bad") if told else ""

    def _paint_frame(self) -> None:
        for place, tab in enumerate(self._tabs):
            tab.disabled = place > max(self.setup.state.visited, self._place)
            tab.button_style = "primary" if place == self._place else ""
        self._back.disabled = self._place == 0
        widgets.show(self._next, self._place < len(STEPS) - 1)
        widgets.show(self._skip, self._place < len(STEPS) - 2)  # at the last but one, Next leads there
        running = self.worker.busy and self.worker.in_thread
        widgets.show(self._stop, running and self._place < len(STEPS))  # the results have a button of their own

    def _go_back(self) -> None:
        self.go(max(self._place - 1, 0))

    def _go_on(self) -> None:
        self._leave_for(self._place + 1)

    def _go_far(self) -> None:
        self._leave_for(len(STEPS) - 1)

    def _leave_for(self, place: int) -> None:
        """Show the step at a place, unless the present one lacks something."""
        missing = self._page(self._place).leave()
        if missing:
            self.say(missing, "bad")
        else:
            self.go(place)

    # ---- what steps ask for -----------------------------------------------------------------------------------------
    @property
    def may_begin(self) -> bool:
        """Whether a step may begin long work by itself; see `utils.ui.steps.step.Shell`."""
        return self.worker.in_thread or self._clicked

    @property
    def busy(self) -> bool:
        """Whether work is going on."""
        return self.worker.busy

    def say(self, text: str, tone: Tone = "info") -> None:
        """Show text in the message line."""
        self._message.value = widgets.text_html("message.html", text=text, tone=tone) if text else ""

    def work(
        self,
        job: Job,
        show: ProgressCallback | None = None,
        done: Callable[[Outcome], None] | None = None,
        begin: str = "",
    ) -> bool:
        """Begin long work; see `utils.ui.steps.step.Shell`."""
        if self.worker.busy:
            self.say("Something is still being done. Wait for it, or press Stop.", "bad")
            return False
        if begin:
            self.say(begin, "busy")
        place = self._place

        def ended(outcome: Outcome) -> None:
            self._paint_frame()
            if outcome.stopped:
                self.say("Stopped.")
            else:
                self.say(outcome.error, "bad")
            if done is not None:
                done(outcome)
            if self._place != place:  # the person went on meanwhile, and what was done concerns that step too
                self._page(self._place).enter()
            else:
                self._prepare_next()

        begun = self.worker.start(job, show or self._show_progress, ended)
        self._paint_frame()
        return begun

    def stop(self, note: str = "Stopping …") -> None:
        """Ask the work to stop; the note comes first, for its end may be told before this returns."""
        self.say(note, "busy")
        self.worker.stop()

    def _show_progress(self, done: int, total: int | None, note: str) -> None:
        count = f" ({done:,} of {total:,})" if total else f" ({done:,})" if done else ""
        self.say(f"{note or 'Working'}{count} …", "busy")
