"""The page of results: the training while it runs, then dashboard, playground, export and download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import TransformerBuilderError
from utils.notebook import hand_over, in_colab
from utils.ui import widgets
from utils.ui.decisions.curve import LossCurve
from utils.ui.playground import PlaygroundView
from utils.ui.steps.review import begin_training
from utils.ui.steps.step import Shell
from utils.ui.work import Outcome, Ticket

FORMAT_WORDS = {
    "onnx": "ONNX (runs in any language, with a small server)",
    "hf": "Folder for Hugging Face transformers",
    "int8": "ONNX in 8 bits (smaller and faster)",
    "pt2": "PyTorch export (.pt2)",
    "torchscript": "TorchScript",
    "safetensors": "Weights alone (safetensors)",
}
"""Format → what people call it."""
INTERRUPT = (
    "The notebook's interrupt button (■) stops it; the step that runs is saved, and the training can go on from there."
)
NOTHING_YET = "No training has begun yet. Step 5 starts it."


class ResultsStep:
    """Sees the run, and what it gave."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.results = shell, shell.setup.results
        self._live = LivePanel(shell)
        self._shown: Any = None
        self._facts = widgets.html_block("tb-facts-of-run")
        self._dashboard = widgets.html_block("tb-dashboard")
        self._playground = PlaygroundView(shell)
        self._formats = {
            name: widgets.checkbox(words, f"tb-format-{name}", value=name in self.results.form.formats)
            for name, words in FORMAT_WORDS.items()
        }
        for tick in self._formats.values():
            widgets.on_change(tick, lambda _: self._formats_chosen())
        self._export = widgets.button("Export", "tb-export", click=self.export, style="primary", icon="cogs")
        self._parity = widgets.html_block("tb-parity")
        self._download = widgets.button(
            "Download", "tb-download", click=self.download, style="success", icon="download"
        )
        self._link = widgets.html_block("tb-saved")
        self._after = widgets.column(
            self._facts,
            widgets.heading("Dashboard"),
            self._dashboard,
            widgets.heading("Playground"),
            self._playground.view,
            widgets.heading("Export"),
            *self._formats.values(),
            widgets.row(self._export, self._download, classes=["tb-actions"]),
            self._parity,
            self._link,
        )
        self.view = widgets.column(
            widgets.style_sheet("results.css"), self._live.view, self._after, classes=["tb-step", "tb-results"]
        )
        self.results.live.watch(self._heard)

    def enter(self) -> None:
        """Show what there is; a finished run of an earlier kernel is read again where that can run beside the page."""
        self._paint()
        waiting = self.results.result is None and self.results.finished
        if waiting and self.shell.may_begin and not self.shell.busy:
            self.shell.work(self._reopened, done=lambda _: self._paint(), begin="Reading the finished run …")

    def leave(self) -> str:
        """Nothing follows."""
        return ""

    def export(self) -> None:
        """Export in the chosen formats, and show how equal the files are."""
        if self.shell.work(
            self.results.export, done=self._exported, begin="Exporting; every file is held against the model …"
        ):
            self._allow(False)

    def download(self) -> None:
        """Pack everything into one file and hand it over; exports first where that was not done."""
        if self.shell.work(self._packed, done=self._handed_over, begin="Packing everything into one file …"):
            self._allow(False)

    # ---- inside -----------------------------------------------------------------------------------------------------
    def _reopened(self, ticket: Ticket) -> Any:
        ticket.progress(0, None, "reading the run")
        return self.results.reopen()

    def _packed(self, ticket: Ticket) -> Path | str:
        """One file: in Colab sent to the browser, and told in words; elsewhere its path."""
        if not in_colab():
            return self.results.pack(ticket)
        training = self.shell.setup.training
        mirror = training.mirror_folder if training.mirrored else None
        return hand_over(self.results.exported(ticket), download=True, mirror=mirror)

    def _heard(self, part: str) -> None:
        if part == "end":
            self._paint()

    def _exported(self, outcome: Outcome) -> None:
        self._paint()
        if outcome.done and self.results.bundle is None:
            self.shell.say("Exported in the formats that were ticked before. Press Export again for the present ones.")
        elif outcome.done:
            self.shell.say("Exported. The table shows that each file gives what the model gives.", "good")

    def _handed_over(self, outcome: Outcome) -> None:
        self._paint()
        if isinstance(outcome.value, Path):
            size = f"{outcome.value.stat().st_size / 1e6:.1f} MB"
            self.shell.say(f"Everything is in {outcome.value} ({size}).", "good")
            widgets.show_download(self._link, outcome.value)
        elif outcome.done:
            self.shell.say(str(outcome.value), "good")

    def _formats_chosen(self) -> None:
        self.results.choose_formats([name for name, tick in self._formats.items() if tick.value])
        self.results.bundle = None
        self._parity.value = ""

    def _allow(self, idle: bool) -> None:
        for button in (self._export, self._download):
            button.disabled = not idle

    def _paint(self) -> None:
        self._live.paint()
        result, bundle = self.results.result, self.results.bundle
        widgets.show(self._after, result is not None)
        self._allow(not self.shell.busy)
        if result is not None:
            self._playground.paint()
            self._paint_result(result)
        self._parity.value = "" if bundle is None else bundle._repr_html_()

    def _paint_result(self, result: Any) -> None:
        """Facts and pictures, once for each result: drawing them takes a moment."""
        if self._shown is not result:
            self._shown = result
            self._facts.value = result._repr_html_()
            self._dashboard.value = _dashboard(result)


class LivePanel:
    """The training while it runs: where it is, the loss, sample texts, and the buttons to stop it and to go on."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.results, self.live = shell, shell.setup.results, shell.setup.results.live
        self._bar = widgets.progress_bar("tb-bar")
        self._line = widgets.html_block("tb-line")
        self._curve = widgets.html_block("tb-curve")
        self._samples = widgets.html_block("tb-samples")
        self._stop = widgets.button("Stop and save", "tb-stop", click=self.stop, style="warning", icon="stop")
        self._interrupt = widgets.hint(INTERRUPT)
        self._go_on = widgets.button("Continue", "tb-continue", click=self.go_on, style="success", icon="play")
        self.view = widgets.column(
            self._bar,
            self._line,
            self._curve,
            self._samples,
            self._interrupt,
            widgets.row(self._stop, self._go_on, classes=["tb-actions"]),
            classes=["tb-live"],
        )
        self.live.watch(self._changed)
        self.paint()

    def stop(self) -> None:
        """Ask the training to stop after the step that runs."""
        if not self.shell.busy:
            return
        self.shell.stop("Stopping: the step that runs is finished and saved …")

    def go_on(self) -> None:
        """Go on exactly where it stopped."""
        if begin_training(self.shell):
            self.paint()

    def paint(self) -> None:
        """Everything as it is now."""
        for part in ("line", "picture", "samples"):
            self._changed(part)
        self._paint_buttons()
        if not self.live.line:
            self._line.value = widgets.text_html("hint.html", text=self._at_rest())

    def _paint_buttons(self) -> None:
        training = self.live.going_on and self.shell.busy
        widgets.show(self._stop, training and self.live.in_thread)
        widgets.show(self._interrupt, training and not self.live.in_thread)
        widgets.show(self._bar, training)
        widgets.show(self._go_on, self.results.interrupted and not self.shell.busy)

    def _at_rest(self) -> str:
        if self.results.interrupted:
            return f"The run {self.results.form.name} was stopped before its end. Continue goes on from its newest checkpoint."
        return f"The run {self.results.form.name} is finished." if self.results.finished else NOTHING_YET

    def _changed(self, part: str) -> None:
        """From the thread that trains: as little as possible."""
        if part == "line" and self.live.line:
            self._bar.value = self.live.fraction
            self._line.value = widgets.text_html("live_line.html", line=self.live.line)
            self._paint_buttons()
        elif part == "picture":
            panel = None if self.live.picture is None else self.live.picture.panel
            self._curve.value = "" if panel is None else widgets.text_html("curve.html", curve=LossCurve.of(panel))
        elif part == "end":
            self._paint_buttons()
        elif part == "samples":
            self._samples.value = widgets.text_html("samples.html", samples=self.live.samples)


def _dashboard(result: Any) -> str:
    """The run's panels; why there are none, where they cannot be drawn."""
    from utils.training.dashboard import Dashboard

    try:
        return Dashboard(result)._repr_html_()
    except TransformerBuilderError as error:
        return widgets.plain_html(str(error))
