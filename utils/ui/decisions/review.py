"""Step 5: everything that was decided on one page, what will happen, and what stands in the way. No widget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.ui.decisions.setup import Setup

LONG_MINUTES = 240.0
"""Minutes from which a warning says that a free session may end earlier."""


@dataclass(frozen=True)
class Section:
    """A part of the summary.

    Attributes:
        title: name of the step. place: of the step, 0 for the first. rows: (what, words).
    """

    title: str
    place: int
    rows: tuple[tuple[str, str], ...]


class Review:
    """Reads all decisions.

    Args:
        setup: the wizard's.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def sections(self) -> list[Section]:
        """One for each step, with what was decided."""
        return [
            Section("Model", 0, tuple(self._model())),
            Section("Data", 1, tuple(self._data())),
            Section("Tokenizer", 2, tuple(self._tokenizer())),
            Section("Training", 3, tuple(self._training())),
        ]

    def plan(self) -> list[str]:
        """What will happen, one sentence each."""
        training, results = self._setup.training, self._setup.results
        if not training.ready:
            return ["The model is read, and what nobody chose takes its default."]
        if self.problems():
            return ["Nothing, until what stands in the way is settled."]
        config = training.config()
        found = []
        if not results.prepared:
            found.append("What nobody chose takes its default.")
        elif results.goes_on:
            found.append(f"The run {results.form.name} goes on from its newest checkpoint.")
        elif results.finished and not results.changed:
            found.append(
                f"The run {results.form.name} is finished already with exactly these settings; its results are shown."
            )
        elif results.form.name:
            found.append(f"A new run begins; the run {results.form.name} had other settings and stays as it is.")
        length = (
            f"{config.max_steps:,} optimizer steps" if config.max_steps else f"{config.epochs} passes over the data"
        )
        found.append(
            f"{training.adapted.name} is trained for {length}; you see the loss and sample texts while it learns."
        )
        found.append(
            f"Checkpoints go to {training.runs}" + (f" and to {config.mirror_dir}." if config.mirror_dir else ".")
        )
        if config.wandb_project:
            found.append(f"The run is logged to the W&B project {config.wandb_project}.")
        found.append("You can stop at any time: the step that runs is saved, and Continue goes on exactly there.")
        return found

    def warnings(self) -> list[str]:
        """What to know before the start; none of it stands in the way."""
        found = []
        form = self._setup.validation.form
        if form.verdict and not form.passed and not self._failed():  # else it stands among the problems
            found.append(f"The model's checks: {form.verdict}")
        elif not form.verdict:
            found.append("The model was not checked (step 1).")
        forecast = self._setup.training.forecast() if self._setup.training.ready else None
        if forecast is not None:
            found += forecast.problems
            if forecast.minutes > LONG_MINUTES:
                found.append(
                    f"The training takes about {forecast.minutes / 60:.0f} hours; a free session may end before. It goes on from its "
                    "newest checkpoint then, for which a folder that outlives this machine is needed (step 4)."
                )
        return found

    def problems(self) -> list[str]:
        """What stands in the way, all at once."""
        setup = self._setup
        unread = setup.dataset.problem() if setup.dataset.is_read else setup.dataset.missing()
        lacks = [("Model", self._failed()), ("Data", unread), ("Tokenizer", setup.tokenizer.missing())]
        found = [f"{name} (step {place}): {lack}" for place, (name, lack) in enumerate(lacks, 1) if lack]
        return found + (setup.training.problems() if setup.training.ready else [])

    def _failed(self) -> str:
        """What the checks found that stands in the way; a model that nobody checked is warned of only."""
        validation = self._setup.validation
        return validation.problem() if validation.form.verdict else ""

    # ---- the sections -----------------------------------------------------------------------------------------------
    def _model(self) -> list[tuple[str, str]]:
        form, adapted = self._setup.validation.form, self._setup.validation.adapted
        rows = [] if adapted is None else [("model", f"{adapted.name}, {adapted.num_parameters():,} parameters")]
        rows += [] if adapted is None else [("task", adapted.contract.task)]
        rows.append(("checks", form.verdict or "not run yet"))
        return rows + ([("fixes", "applied to a copy of the model")] if form.mended else [])

    def _data(self) -> list[tuple[str, str]]:
        dataset = self._setup.dataset
        data = dataset.loaded
        if data is None and dataset.is_read:
            name = dataset.for_training()
            words = dataset.examples.get(name) if isinstance(name, str) else None
            return [("data", words or "what the notebook passed")]
        if data is None:
            return [("data", "not read yet; the choice of step 2, or the bundled example")]
        if not hasattr(data, "report"):
            return [("data", type(data).__name__)]
        rows = [
            ("data", data.name),
            (
                "size",
                f"{len(data):,} document{'' if len(data) == 1 else 's'}, {data.report.text_bytes / 1e6:.2f} MB of text",
            ),
        ]
        rejected = data.report.rejected_count
        return rows + ([("rejected", f"{rejected:,} rows")] if rejected else [])

    def _tokenizer(self) -> list[tuple[str, str]]:
        tokenizer = self._setup.tokenizer.made
        if tokenizer is None and self._setup.tokenizer.not_needed:
            return [("tokenizer", self._setup.tokenizer.not_needed.removesuffix(" Go on."))]
        if tokenizer is None:
            return [("tokenizer", "not made yet; the one that fits the model is")]
        choice = getattr(tokenizer, "choice", None)
        rows = [("vocabulary", f"{len(tokenizer.get_vocab()):,} tokens")]
        return rows if choice is None else [("strategy", f"{choice.strategy}: {choice.reason}"), *rows]

    def _training(self) -> list[tuple[str, str]]:
        training = self._setup.training
        if not training.ready:
            return [("settings", "those that fit the model")]
        if training.problems():
            return [("settings", "do not hold yet")]
        config, (precision, why) = training.config(), training.precision()
        effective = f"{config.batch_size} × {config.gradient_accumulation_steps}"
        rows = [
            ("preset", training.preset),
            ("length", f"{config.max_steps:,} steps" if config.max_steps else f"{config.epochs} epochs"),
            ("samples per step", effective),
            *self._length(config.max_length),
            ("learning rate", f"{config.learning_rate:g}, {config.learning_rate_schedule}"),
            ("precision", f"{precision}: {why}"),
        ]
        forecast = training.forecast()
        if forecast is not None:
            rows += forecast.rows()[:1] + [row for row in forecast.rows() if row[0] == "memory"]
        return rows

    def _length(self, chosen: int | None) -> list[tuple[str, str]]:
        """Tokens of a sample; nothing where a sample is an image."""
        longest = self._setup.training.longest
        if self._setup.dataset.task == "vision":
            return []
        return [("tokens per sample", f"{min(chosen or longest, longest):,}")]
