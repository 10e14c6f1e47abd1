"""The verb `train`: model and data in, trained model out. Finds data and tokenizer; the rest is `engine.trainer.Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils._extras import require
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import DataError, TokenizerError
from utils.progress import ProgressCallback, showing
from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
from utils.tokenization.split import sides
from utils.tokenization.validator import TokenizerValidator
from utils.training.data_streams import is_stream, open_stream, validation_of
from utils.training.dataset_utilities import DatasetLoader, resolve_data
from utils.training.result import TrainingResult
from utils.training.run_manifest import describe_data
from utils.training.task_examples import EXAMPLES
from utils.training.task_spec import example
from utils.training.training_config import TrainingConfig, settings_of

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from transformers import PreTrainedTokenizerBase

    from utils.loading.model_loader import LoadedModel
    from utils.tokenization.data_module import UniversalDataModule
    from utils.tokenization.documents import Documents
    from utils.tokenization.streaming import StreamedText
    from utils.training.engine.hooks import TrainingHooks
    from utils.training.engine.trainer import Trainer
    from utils.training.live_plot import LivePlot
    from utils.training.task_spec import TaskSpec

logger = logging.getLogger(__name__)

__all__ = ["TrainingCoordinator", "TrainingResult", "train"]

LONGEST_TEXT = 512
"""Tokens at which texts with a class or a target are cut where neither the settings nor the model name a limit."""


def train(
    model: nn.Module | LoadedModel,
    data: Any = "python-docs",
    config: TrainingConfig | Mapping[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    task_spec: TaskSpec | None = None,
    workspace: str | Path | None = None,
    progress: bool | ProgressCallback = True,
    resume: str = "auto",
) -> TrainingResult:
    """Train a model on the task of its contract, or continue an interrupted training.

    The model is adapted where it is not yet, and trained in place: its weights change, and a second training goes on from
    them. Where the attention of a language model sees later tokens, a causal copy of its structure over the same weights is
    trained instead, and where that is impossible it learns to name hidden tokens; the result says so.

    Args:
        model: an `AdaptedModel`, what `load_model` gave, or an `nn.Module`.
        data: "python-docs" (bundled), the name of a built-in example ("lm_tiny", "cls_tiny", …: see `task_spec`), whatever else `DatasetLoader.from_anything` takes (a path, the name of a Hub data set, an
            upload, a list of texts, a `datasets.Dataset`), a stream (a `datasets.IterableDataset`; with `stream_data` also a
            path or a Hub name), token ids (a tensor (N, T), or a list of tensors (T,) of one
            length), or a `UniversalDataModule` of the model's task. A model that is no language model takes pairs: (text, class),
            (source, target) or (image, class), or data with columns of that kind. A part of the
            documents that depends on their content alone is kept for validation (see `tokenization.split`); the data's own
            validation part is taken where it has one.
        config: settings, as `TrainingConfig` or mapping; None takes the defaults.
        tokenizer: None lets `AdaptiveTokenizer` choose one for the model's embedding rows and the training text; the result
            says which and why (`tokenizer_reason`).
        task_spec: task, loss, columns and names of classes; None takes those of the model's contract.
        workspace: folder of the runs; None takes `config.checkpoint_dir`.
        progress: True shows a display, False none; or a callable (steps done, steps in total, note).
        resume: "auto" continues an interrupted run of the same model (code, contract, weights), data and settings;
            "continue" does so whatever weights the model comes with; "never" begins anew.

    Returns:
        The trained model with everything that was measured; its folder holds config, metrics, tokenizer, checkpoints
        and manifest.

    Raises:
        ConfigError: settings that do not hold, all of them listed.
        DataError: data that is no text, or too little of it.
        TokenizerError: a tokenizer that does not fit the model's rows.
        TrainingError: a model that cannot be trained honestly, losses that are not finite, or a run that differs.

    Example:
        >>> result = train(adapted, data="notes.txt", config=TrainingConfig(epochs=3))
        >>> result["val_bits_per_byte_history"][-1]
    """
    coordinator = TrainingCoordinator(
        model,
        data,
        tokenizer=tokenizer,
        training_config=config,
        task_spec=task_spec,
        workspace=workspace,
        progress=progress,
        resume=resume,
    )
    return coordinator.run()


class TrainingCoordinator:
    """The walk for whoever holds a model and data: data → tokenizer → samples → `engine.trainer.Trainer`.

    Args:
        model: an `AdaptedModel`, what `load_model` gave, or an `nn.Module`.
        dataset: as `data=` of `train`.
        config: what is known about the model, for `adapt`; an adapted model brings its own.
        tokenizer: None lets `AdaptiveTokenizer` choose one.
        training_config: settings, as `TrainingConfig` or mapping; None takes the defaults.
        task_spec: task, loss and columns; None takes those of the model's contract.
        workspace, progress, resume: as for `train`.
        hooks: called at the turns of the run.
        stop, plot: as for `engine.trainer.Trainer`.

    Attributes:
        result: what `run` or `train` gave last.

    Example:
        >>> trainer, lit = TrainingCoordinator(model=model, config=config, dataset=texts, training_config=cfg).train()
    """

    def __init__(
        self,
        model: nn.Module | LoadedModel,
        dataset: Any = "python-docs",
        config: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        task_spec: TaskSpec | None = None,
        *,
        workspace: str | Path | None = None,
        progress: bool | ProgressCallback = True,
        resume: str = "auto",
        hooks: TrainingHooks | None = None,
        stop: Callable[[], bool] | None = None,
        plot: LivePlot | None = None,
    ) -> None:
        require("pytorch_lightning", extra="training", feature="Training")
        self.settings = settings_of(training_config)
        self.adapted = adapt(model, config)
        self.dataset, self.tokenizer, self.spec = dataset, tokenizer, task_spec
        self.workspace = Path(workspace if workspace is not None else self.settings.checkpoint_dir).expanduser()
        self.progress, self.resume, self.hooks = progress, resume, hooks
        self.stop, self.plot = stop, plot
        self.result: TrainingResult | None = None

    def train(self) -> tuple[pl.Trainer, pl.LightningModule]:
        """Train, or continue an interrupted training; see `train` for the errors.

        Returns:
            Lightning's trainer and module, as they are after the last step; `result` holds what was measured.
        """
        trainer = self._trained()
        return trainer.engine, trainer.module

    def run(self) -> TrainingResult:
        """Train, and return what was measured."""
        self._trained()
        assert self.result is not None
        return self.result

    def _trained(self) -> Trainer:
        from utils.training.engine.processes import Processes
        from utils.training.engine.several import quiet_followers

        processes = Processes.here()
        shown = self.progress if processes.leads else False
        with showing(shown, "Training", "steps") as report, quiet_followers(processes):
            # a callable is promised steps, and nothing before them
            notes = _notes_to(report) if shown is True else False
            train_part, validation_part = processes.in_turn(lambda: self._parts(notes))
            trainer = self._trainer(report)
            self.result = trainer.train(train_part, validation_part)
        return trainer

    def _kind(self) -> type[Trainer]:
        """The class that trains."""
        from utils.training.engine.trainer import Trainer

        return Trainer

    def _trainer(self, report: ProgressCallback) -> Trainer:
        return self._kind()(
            self.adapted,
            None,
            self.settings,
            self.spec,
            self.tokenizer,
            workspace=self.workspace,
            progress=report,
            resume=self.resume,
            hooks=self.hooks,
            data_origin=describe_data(self.dataset, self.settings.stream_data),
            stop=self.stop,
            plot=self.plot,
        )

    def _parts(self, notes: bool | ProgressCallback) -> tuple[Any, Any]:
        """Data for training and validation, and a tokenizer that never saw the latter."""
        from utils.tokenization.data_module import UniversalDataModule

        fraction, data = self.settings.validation_fraction, _example_or(self.dataset)
        if self.settings.stream_data or is_stream(data):
            return self._streamed(data, notes)
        blocks = _blocks_of(data)
        if blocks is not None:
            return _split_blocks(blocks, fraction)
        if isinstance(data, UniversalDataModule):
            if data.task != "vision":
                self.tokenizer = _proven(self.adapted, self.tokenizer or data.tokenizer)
            return data, None
        if self.adapted.contract.task in ("lm", "masked"):
            text = resolve_data(data, fraction, progress=notes)
            self.tokenizer = self._fitting_tokenizer(text.train, notes)
            return text.train, text.validation
        return self._labelled(data, notes), None

    def _streamed(self, data: Any, notes: bool | ProgressCallback) -> tuple[StreamedText, Any]:
        """A stream, and its first documents for validation, unless the data bring others."""
        if self.adapted.contract.task != "lm":
            raise DataError(
                f"{self.adapted.name} is trained on {self.adapted.contract.task!r}, and a stream holds text for next-token training "
                "only. Leave stream_data out, and pass a part of the data that fits the disk."
            )
        column = None if self.spec is None else self.spec.for_data().get("column")
        text = open_stream(data, column)
        self.tokenizer = self._fitting_tokenizer(text.sample() if self.tokenizer is None else text.held_back, notes)
        validation = validation_of(data)
        return text, text.held_back if validation is None else validation

    def _labelled(self, data: Any, notes: bool | ProgressCallback) -> UniversalDataModule:
        """Examples with a class or a target each."""
        from utils.tokenization.data_module import UniversalDataModule
        from utils.tokenization.vision import VisionDataCollator

        contract, settings = self.adapted.contract, self.settings
        columns = {} if self.spec is None else self.spec.for_data()
        if isinstance(data, (str, Path)):
            named = "target_column" if contract.task == "seq2seq" else "label_column"
            data = DatasetLoader.from_anything(data, progress=notes, **{named: columns.get(named) or "auto"})
        return UniversalDataModule(
            data,
            self.tokenizer,
            contract.task,
            make_tokenizer=lambda texts: self._fitting_tokenizer(texts, notes),
            validation_fraction=settings.validation_fraction,
            batch_size=settings.batch_size,
            max_length=min(value for value in (settings.max_length, contract.max_length, LONGEST_TEXT) if value),
            seed=settings.random_seed,
            cache_dir=self.workspace / ".cache",
            collator=VisionDataCollator.for_shape(contract.image_shape) if contract.task == "vision" else None,
            **columns,
        )

    def _fitting_tokenizer(self, texts: Documents, notes: bool | ProgressCallback) -> PreTrainedTokenizerBase:
        """The given tokenizer or a new one, proven to fit the model's rows."""
        if self.tokenizer is None:
            cache = self.workspace / ".cache" / "tokenizers"
            self.tokenizer = AdaptiveTokenizer.load_or_create(_rows(self.adapted), texts, cache, progress=notes)
            logger.info("tokenizer: %s", self.tokenizer.choice.reason)
        return _proven(self.adapted, self.tokenizer)


def _proven(adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer, where it fits the model's rows. One that alters text, as lower-casing ones do, is said to do so."""
    if tokenizer is None:
        raise TokenizerError("The data module has no tokenizer: pass tokenizer=.")
    found = TokenizerValidator.validate(tokenizer, _rows(adapted), lossless=False)
    found.raise_for_problems()
    if not found.lossless:
        logger.warning("the tokenizer does not give every text back as it was: %s", "; ".join(found.notes))
    return tokenizer


def _example_or(data: Any) -> Any:
    """Both parts of a built-in example, where its name was given."""
    if not isinstance(data, str) or data not in EXAMPLES:
        return data
    found = example(data)
    return {"train": list(found.train), "validation": list(found.validation)}


def _blocks_of(data: Any) -> torch.Tensor | None:
    """Token ids (N, T), where `data` is a tensor of them or a list of tensors (T,); None where it is something else."""
    if isinstance(data, torch.Tensor):
        return data
    if not isinstance(data, (list, tuple)) or not any(isinstance(row, torch.Tensor) for row in data):
        return None
    shapes = sorted(
        {tuple(row.shape) if isinstance(row, torch.Tensor) else type(row).__name__ for row in data}, key=str
    )
    if len(shapes) > 1 or not isinstance(shapes[0], tuple) or len(shapes[0]) != 1:
        raise DataError(
            f"A list of token ids holds tensors (T,) of one length; got {', '.join(map(str, shapes[:5]))}. Cut or join them to "
            "one length, or pass texts, which are packed into full blocks."
        )
    return torch.stack(list(data))


def _split_blocks(blocks: torch.Tensor, validation_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of both parts, drawn as documents are: by what they hold, so that equal rows lie on one side."""
    if blocks.dim() != 2 or blocks.is_floating_point() or blocks.is_complex() or blocks.dtype == torch.bool:
        raise DataError(f"Token ids are whole numbers (N, T); got {blocks.dtype} of shape {tuple(blocks.shape)}.")
    rows = blocks.cpu().to(torch.int64)
    drawn = sides((row.numpy().tobytes().decode("latin-1") for row in rows), validation_fraction, seed=42).validation
    if not drawn.any():
        raise DataError("Training and validation need two different rows of token ids or more; all of them are equal.")
    kept = torch.from_numpy(drawn)
    return rows[~kept], rows[kept]


def _rows(adapted: AdaptedModel) -> int:
    rows = adapted.contract.vocab_size
    if rows is None:
        raise TokenizerError(
            f"How many token ids {adapted.name} takes is unknown: it has no embedding, and its config names no vocab_size. "
            "Pass adapt(model, config={'vocab_size': ...})."
        )
    return rows


def _notes_to(report: ProgressCallback) -> ProgressCallback:
    """Shows what comes before the training in its display: the note alone."""

    def note_only(done: int, total: int | None, note: str = "") -> None:
        report(0, None, note)

    return note_only
