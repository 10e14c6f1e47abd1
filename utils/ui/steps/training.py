"""The view of step 4: presets, sliders with their reasons, and a forecast that follows every move."""

from __future__ import annotations

import functools
from typing import Any

from utils.errors import TransformerBuilderError
from utils.notebook import in_colab
from utils.training.setting_problems import PRECISIONS
from utils.ui import widgets
from utils.ui.presets import PresetChoice
from utils.ui.steps.advanced import AdvancedSettings
from utils.ui.steps.step import Shell, said
from utils.ui.work import Outcome, Ticket

INTRO = (
    "These settings fit your model, your data and this machine; each says why. Move them and the forecast follows. With no wish "
    "of your own, just go on."
)
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 8e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)
MOST_EPOCHS, MOST_BATCH = 50, 128
MIRROR_HINT = (
    "Checkpoints are copied there while the training runs, so that it can go on after this machine is gone. On Colab, tick Google "
    "Drive in the notebook's form; elsewhere, name any folder on another disk."
)


class TrainingStep:
    """Presets above, sliders in the middle, places and the advanced fold below, the forecast at the end."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.decision = shell, shell.setup.training
        self._preset = PresetChoice(self._presets_changed)
        self._epochs = widgets.slider("Epochs", "tb-epochs", value=1, least=1, most=MOST_EPOCHS, step=1)
        self._rate = widgets.choice("Learning rate", "tb-rate", options=[(f"{rate:g}", rate) for rate in RATES])
        self._batch = widgets.slider("Samples per step", "tb-batch", value=1, least=1, most=MOST_BATCH, step=1)
        self._length = widgets.slider("Tokens per sample", "tb-length", value=2, least=2, most=2, step=1)
        self._precision = widgets.choice("Precision", "tb-precision", options=list(PRECISIONS))
        self._sliders = {
            "epochs": self._epochs,
            "learning_rate": self._rate,
            "batch_size": self._batch,
            "max_length": self._length,
            "precision": self._precision,
        }
        self._why = {name: widgets.html_block("tb-why") for name in self._sliders}
        form = self.decision.form
        self._drive = widgets.checkbox("Keep a copy of every checkpoint", "tb-drive", value=self.decision.mirrored)
        self._folder = widgets.text_field(
            "Folder for copies", "tb-drive-folder", placeholder="/content/drive/MyDrive/…"
        )
        self._wandb = widgets.checkbox("Log to Weights & Biases", "tb-wandb", value=form.wandb)
        self._project = widgets.text_field("Project", "tb-wandb-project", value=form.wandb_project)
        self._wandb_why = widgets.html_block("tb-why-tick")
        self._advanced = AdvancedSettings(self.decision, self._changed)
        self._forecast = widgets.html_block("tb-forecast")
        self._measure = widgets.button("Measure this machine", "tb-measure", click=self.measure, icon="clock-o")
        self._listen()
        self.view = widgets.column(
            widgets.style_sheet("results.css"),
            widgets.intro(INTRO),
            self._preset.view,
            *(part for name, control in self._sliders.items() for part in (control, self._why[name])),
            self._drive,
            widgets.column(self._folder, widgets.hint(MIRROR_HINT)),
            self._wandb,
            self._wandb_why,
            self._project,
            self._advanced.view,
            self._forecast,
            widgets.row(self._measure, classes=["tb-actions"]),
            classes=["tb-step", "tb-training"],
        )

    # ---- the protocol -----------------------------------------------------------------------------------------------
    def enter(self) -> None:
        """Show the settings; measure the machine where that can run beside the page and was not done."""
        self._paint()
        if self.shell.may_begin and not self.shell.busy and (not self.decision.ready or self.decision.to_measure):
            self.measure()

    def leave(self) -> str:
        """Everything that is wrong with the settings, at once."""
        if not self.decision.ready:
            return "The model has not been read yet: press Measure this machine, or check it in step 1."
        return "\n".join(self.decision.problems())

    def measure(self) -> None:
        """Time the model on this machine, once."""
        if self.shell.work(self._measured, done=self._ended, begin="Measuring how fast the model trains here …"):
            self._measure.disabled = True

    def _measured(self, ticket: Ticket) -> Any:
        self.shell.setup.results.prepare(ticket)
        return self.decision.measure(ticket.progress)

    def _ended(self, outcome: Outcome) -> None:
        self._measure.disabled = False
        self._paint()

    # ---- what the person does ---------------------------------------------------------------------------------------
    def _listen(self) -> None:
        for name, control in self._sliders.items():
            widgets.on_change(control, said(self.shell, functools.partial(self._moved, name)))
        for control, chosen in (
            (self._drive, lambda wanted: self._placed(mirror=wanted)),
            (self._folder, lambda folder: self._placed(mirror_folder=folder.strip())),
            (self._wandb, self._wandb_wanted),
            (self._project, lambda project: self._placed(wandb_project=project.strip())),
        ):
            widgets.on_change(control, said(self.shell, chosen))

    def _moved(self, name: str, value: Any) -> None:
        """A slider or list: arithmetic only, so that it keeps up with the hand."""
        self.decision.change(name, value)
        self._changed()

    def _placed(self, **choices: Any) -> None:
        self.decision.place(**choices)
        self._changed()

    def _wandb_wanted(self, wanted: bool) -> None:
        mode = self.decision.ask_wandb() if wanted else self.decision.wandb
        if wanted and mode.mode != "online":
            widgets.set_value(self._wandb, False)
            self.shell.say(f"Not logged to Weights & Biases: {mode.reason}.", "bad")
            wanted = False
        self._placed(wandb=wanted)

    def _presets_changed(self, name: str) -> None:
        try:
            self.decision.choose_preset(name)
        except TransformerBuilderError as error:
            self.shell.say(str(error), "bad")
        self._paint()

    def _changed(self) -> None:
        """Something moved: everything that follows from it, but none of the controls under the person's hand."""
        if self.decision.ready:
            self._paint_forecast()
            if not self.decision.problems():  # a value that does not hold has no reason, and may be no number
                self._paint_reasons()
        self._paint_places()

    # ---- painting ---------------------------------------------------------------------------------------------------
    def _paint(self) -> None:
        if not self.decision.ready:
            self._forecast.value = widgets.text_html("hint.html", text="The model is being read.")
            return
        self._preset.paint(self.decision)
        self._paint_controls()
        self._advanced.paint()
        self._changed()

    def _paint_controls(self) -> None:
        config, longest = self.decision.config(), self.decision.longest
        self._length.max = max(longest, 2)
        widgets.show(self._length, longest > 2)
        widgets.show(self._why["max_length"], longest > 2)
        rates = sorted({*RATES, config.learning_rate})
        widgets.fill_options(self._rate, [(f"{rate:g}", rate) for rate in rates], config.learning_rate)
        self._epochs.max = max(MOST_EPOCHS, config.epochs)
        self._batch.max = max(MOST_BATCH, config.batch_size)
        widgets.set_value(self._epochs, config.epochs)
        widgets.set_value(self._batch, config.batch_size)
        widgets.set_value(self._length, min(config.max_length or longest, longest))
        widgets.set_value(self._precision, config.precision)
        self._paint_places()

    def _paint_reasons(self) -> None:
        reasons = self.decision.reasons()
        config, (precision, _) = self.decision.config(), self.decision.precision()
        shown = {**reasons, "precision": f"{precision}: {reasons['precision']}"}
        if config.max_steps is not None:
            shown["epochs"] = (
                f"ends after {config.max_steps:,} steps: {reasons.get('epochs', reasons.get('max_steps', ''))}"
            )
        if config.gradient_accumulation_steps > 1:
            times = f"times {config.gradient_accumulation_steps} accumulated"
            shown["batch_size"] = f"{times}: {shown.get('batch_size', 'as in the preset')}"
        shown.setdefault("max_length", f"the model takes up to {self.decision.longest:,}")
        for name, block in self._why.items():
            block.value = widgets.text_html("why.html", text=shown.get(name, "as in the preset"))

    def _paint_places(self) -> None:
        decision = self.decision
        widgets.set_value(self._drive, decision.mirrored)
        widgets.set_value(self._folder, decision.mirror_folder)
        widgets.show(self._folder, decision.mirrored)
        mode = decision.wandb
        self._wandb.disabled = mode.mode != "online" and not in_colab()  # Colab's secrets are asked when it is ticked
        self._wandb_why.value = widgets.text_html("why.html", text=mode.reason)
        widgets.show(self._project, decision.form.wandb)

    def _paint_forecast(self) -> None:
        forecast, problems = self.decision.forecast(), self.decision.problems()
        self._forecast.value = widgets.text_html(
            "forecast.html",
            rows=forecast.rows() if forecast is not None else [],
            fits=forecast is None or forecast.fits,
            problems=problems,
            waiting=self.decision.to_measure,
        )
        widgets.show(self._measure, self.decision.to_measure)
