"""The run that the wizard leads to and what it gave: train, stop, continue, find again, export, pack. No widget.

A run is told by its settings, model, data and tokenizer: equal ones go on or are handed out again, others begin anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, TrainingStopped
from utils.progress import Progress
from utils.ui.decisions.live import Live, prompt_of
from utils.ui.work import StopRequested

if TYPE_CHECKING:
    import torch

    from utils.export.bundle import Bundle
    from utils.training.result import TrainingResult
    from utils.training.training_config import TrainingConfig
    from utils.ui.decisions.dataset import DatasetDecision
    from utils.ui.decisions.playground import Playground
    from utils.ui.decisions.setup import Setup
    from utils.ui.work import Ticket

logger = logging.getLogger(__name__)

FORMATS = ("onnx", "hf")
"""Formats that are exported where nobody chose: a file that runs anywhere, and a folder for transformers."""


@dataclass
class RunForm:
    """The run that was begun last; kept in the state's file, so that a restarted kernel finds it.

    Attributes:
        name: of its folder below `runs`; empty before the first one.
        subject: SHA-256 of what it trains with; see `Results.subject`.
        formats: chosen for the export.
    """

    name: str = ""
    subject: str = ""
    formats: list[str] = field(default_factory=lambda: list(FORMATS))


class Results:
    """Trains, and holds what came of it.

    Args:
        setup: the wizard's decisions.

    Attributes:
        live: what is seen while it trains.
        result: of the training; None before its end, and after a restart until `reopen`.
        bundle: of the export; None before it.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.live = setup, Live()
        self.form = setup.state.form("run", RunForm)
        self.result: TrainingResult | None = None
        self.bundle: Bundle | None = None
        self._fresh: tuple[object, dict[str, torch.Tensor]] | None = None
        self._playground: Playground | None = None

    # ---- where the run is -------------------------------------------------------------------------------------------
    @property
    def folder(self) -> Path | None:
        """Folder of the run that was begun last; None where there is none."""
        path = self.setup.training.runs / self.form.name
        return path if self.form.name and path.is_dir() else None

    @property
    def finished(self) -> bool:
        """Whether that run came to its end."""
        return self.folder is not None and (self.folder / "manifest.json").is_file()

    @property
    def interrupted(self) -> bool:
        """Whether that run can go on."""
        return self.folder is not None and not self.finished

    @property
    def prepared(self) -> bool:
        """Whether model, data and tokenizer are there, so that `changed` can be told."""
        setup = self.setup
        made = setup.tokenizer.made is not None or bool(setup.tokenizer.not_needed)
        return setup.training.ready and setup.dataset.is_read and made

    @property
    def goes_on(self) -> bool:
        """Whether the next training goes on with the run that was begun last."""
        return self.interrupted and self.prepared and not self.changed

    @property
    def changed(self) -> bool:
        """Whether what was decided since then belongs to another run."""
        return self.form.subject != self.subject()

    def subject(self) -> str:
        """SHA-256 of everything that a run depends on: settings, model, data, tokenizer."""
        from utils.training.fingerprint import structure_identity
        from utils.training.run_folder import WITHOUT_EFFECT_ON_WEIGHTS

        settings = self.setup.training.config().to_dict()
        told = {
            "settings": {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT_ON_WEIGHTS},
            "model": structure_identity(self.setup.training.adapted),
            "data": _data_hash(self.setup.dataset),
            "tokenizer": _vocabulary_hash(self.setup.tokenizer.made),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    # ---- training ---------------------------------------------------------------------------------------------------
    def train(self, ticket: Ticket, anew: bool = False) -> TrainingResult:
        """Train with what was decided and with the defaults elsewhere, go on where a run was stopped, or hand out the result.

        Args:
            ticket: of the work; a stop saves the step that runs.
            anew: begin a new run even where one could go on.

        Raises:
            StopRequested: it was stopped; the next call goes on. KeyboardInterrupt: it was interrupted; the same.
            ConfigError: settings that do not hold, all of them. Others as `utils.train`.
        """
        data = self.prepare(ticket)
        problems = self.setup.training.problems()
        if problems:
            raise ConfigError("The training cannot begin (step 4):\n" + "\n".join(f"- {text}" for text in problems))
        if not anew and self.finished and not self.changed:
            return self.result if self.result is not None else self.reopen()
        self.result, self.bundle, self._playground = None, None, None
        self._fresh_weights()
        self.live.begin()
        try:
            self.result = self._trained(ticket, data, anew)
        except TrainingStopped as stopped:
            raise StopRequested(str(stopped)) from stopped
        return self.result

    def prepare(self, ticket: Ticket) -> Any:
        """Model, data and tokenizer as they were chosen, or by default: what training needs. Returns the data.

        Raises:
            TransformerBuilderError: one of them cannot be had; the message says what to do.
        """
        ticket.progress(0, None, "reading the model")
        self.setup.validation.prepare()
        data = self.setup.dataset.prepare(ticket)
        self.setup.tokenizer.prepare(ticket)
        return data

    def _trained(self, ticket: Ticket, data: Any, anew: bool) -> TrainingResult:
        from utils.training.training_core import TrainingCoordinator
        from utils.ui.decisions.sample_hooks import SampleHooks

        setup, config = self.setup, self.setup.training.config()
        subject = self.subject()  # now: while the run gets ready, the person may change settings for the next one
        with Progress("Training", unit="steps", view=self.live) as progress:
            progress(0, None, "getting ready")
            coordinator = TrainingCoordinator(
                setup.training.adapted,
                data,
                tokenizer=setup.tokenizer.made,
                training_config=self._named(config, anew),
                workspace=setup.training.runs,
                progress=progress,
                resume="never" if anew else "continue",
                hooks=SampleHooks(self.live, self.prompt(), lambda name: self._keep(name=name, subject=subject)),
                stop=lambda: ticket.stopping,
                plot=self.live.plot(),
            )
            try:
                return coordinator.run()
            except (TrainingStopped, KeyboardInterrupt):
                progress.close("stopped and saved")
                raise

    def _named(self, config: TrainingConfig, anew: bool) -> TrainingConfig:
        """The name of the run that goes on; without one the training looks for one that fits, on the mirror, too."""
        known = self.form.name if self.goes_on and not anew else None
        return dataclasses.replace(config, run_name=known)

    def _fresh_weights(self) -> None:
        """Each new run begins with the weights that the model came with; training changes them in place."""
        adapted = self.setup.training.adapted
        if self._fresh is None or self._fresh[0] is not adapted:
            self._fresh = (adapted, {name: value.detach().clone() for name, value in adapted.state_dict().items()})
        else:
            adapted.load_state_dict(self._fresh[1])

    def prompt(self) -> str:
        """How sample texts begin: as the data does."""
        data = self.setup.dataset.loaded
        return prompt_of(data[:20]) if data is not None else "The"

    # ---- afterwards -------------------------------------------------------------------------------------------------
    def reopen(self) -> TrainingResult:
        """The result of a finished run of an earlier kernel, from its folder.

        Raises:
            TrainingError, CheckpointError: it is gone or damaged.
        """
        from utils.training.recovery import recover

        self.setup.validation.prepare()
        assert self.folder is not None
        self._fresh_weights()  # a new run that is begun after a look at this one does not start from its weights
        self.result = recover(self.folder, self.setup.validation.prepare())
        return self.result

    @property
    def playground(self) -> Playground | None:
        """Where the trained model is tried; None before there is a result."""
        if self.result is None:
            return None
        if self._playground is None:
            from utils.ui.decisions.playground import Playground

            self._playground = Playground(self.result)
        return self._playground

    def choose_formats(self, names: list[str]) -> None:
        """Formats for the export."""
        self._keep(formats=list(names))

    def export(self, ticket: Ticket) -> Bundle:
        """Export the result in the chosen formats, each proven equal to the model.

        Raises:
            ConfigError: there is no result, or no format is chosen. ExportError: no format was left.
        """
        from utils.export.bundle import export

        if self.result is None:
            raise ConfigError("There is nothing to export yet: train first (step 5).")
        if not self.form.formats:
            raise ConfigError("Choose at least one format for the export.")
        out, formats = self.setup.folder / "exports" / str(self.result["run_name"]), tuple(self.form.formats)
        made = export(self.result, formats, out, progress=ticket.progress)
        self.bundle = made if formats == tuple(self.form.formats) else None  # others were ticked while it went on
        return made

    def pack(self, ticket: Ticket) -> Path:
        """Everything in one file: exported with the chosen formats where that was not done yet."""
        bundle = self.exported(ticket)
        ticket.progress(0, None, "packing")
        return bundle.zip()

    def exported(self, ticket: Ticket) -> Bundle:
        """The export, made now where it was not."""
        return self.bundle if self.bundle is not None else self.export(ticket)

    def _keep(self, **changes: Any) -> None:
        self.form = dataclasses.replace(self.form, **changes)
        self.setup.state.keep("run", self.form)


def _data_hash(dataset: DatasetDecision) -> str:
    """Fingerprint of the data, where it has one; of token ids their SHA-256; else what was chosen, in words."""
    told: tuple[Any, ...] = (dataset.loaded, dataset.for_training())
    for data in told:
        known = getattr(data, "fingerprint", None)
        if known is not None:
            return str(known)
        if hasattr(data, "numpy"):
            return hashlib.sha256(data.cpu().numpy().tobytes()).hexdigest()
    return repr(dataset.form)


def _vocabulary_hash(tokenizer: Any) -> str | None:
    """SHA-256 of a tokenizer's vocabulary; None without one."""
    if tokenizer is None:
        return None
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
