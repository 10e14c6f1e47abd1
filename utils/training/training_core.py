"""The verb `train`: model and text in, trained model out. The walk itself is `engine.trainer.Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils._extras import require
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import ConfigError, DataError, TokenizerError
from utils.progress import ProgressCallback, showing
from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
from utils.tokenization.split import sides
from utils.tokenization.validator import TokenizerValidator
from utils.training.dataset_utilities import TextData, resolve_data
from utils.training.objective import check_task
from utils.training.result import TrainingResult
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.loading.model_loader import LoadedModel

logger = logging.getLogger(__name__)

__all__ = ["TrainingResult", "train"]


def train(
    model: nn.Module | LoadedModel,
    data: Any = "python-docs",
    config: TrainingConfig | Mapping[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    workspace: str | Path | None = None,
    progress: bool | ProgressCallback = True,
    resume: str = "auto",
) -> TrainingResult:
    """Train a model on text, or continue an interrupted training.

    The model is adapted where it is not yet, and trained in place: its weights change, and a second training goes on from
    them. Where its attention sees later tokens, a causal copy of
    its structure over the same weights is trained instead; the result says so.

    Args:
        model: an `AdaptedModel`, what `load_model` gave, or an `nn.Module`.
        data: "python-docs" (bundled), whatever else `DatasetLoader.from_anything` takes (a path, the name of a Hub data set, an
            upload, a list of texts, a `datasets.Dataset`), token ids (a tensor (N, T), or a list of tensors (T,) of one
            length), or a `UniversalDataModule` of the task "lm". A part of the
            documents that depends on their content alone is kept for validation (see `tokenization.split`); the data's own
            validation part is taken where it has one.
        config: settings, as `TrainingConfig` or mapping; None takes the defaults.
        tokenizer: None lets `AdaptiveTokenizer` choose one for the model's embedding rows and the training text; the result
            says which and why (`tokenizer_reason`).
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
    require("pytorch_lightning", extra="training", feature="Training")
    from utils.tokenization.data_module import UniversalDataModule
    from utils.training.engine.trainer import Trainer

    settings = _settings(config)
    adapted = adapt(model)
    check_task(adapted)
    root = Path(workspace if workspace is not None else settings.checkpoint_dir).expanduser()
    with showing(progress, "Training", "steps") as report:
        prepare = (
            _notes_to(report) if progress is True else False
        )  # a callable is promised steps, and nothing before them
        blocks = _blocks_of(data)
        if blocks is not None:
            train_part, validation_part = _split_blocks(blocks, settings.validation_fraction)
            trainer = Trainer(
                adapted, None, settings, tokenizer=tokenizer, workspace=root, progress=report, resume=resume
            )
            return trainer.train(train_part, validation_part)
        if isinstance(data, UniversalDataModule):
            text, fitting = None, _proven(adapted, tokenizer if tokenizer is not None else data.tokenizer)
        else:
            text = resolve_data(data, settings.validation_fraction, progress=prepare)
            fitting = _fitting_tokenizer(adapted, tokenizer, text, root / ".cache" / "tokenizers", prepare)
        trainer = Trainer(adapted, None, settings, tokenizer=fitting, workspace=root, progress=report, resume=resume)
        return trainer.train(data) if text is None else trainer.train(text.train, text.validation)


def _settings(config: TrainingConfig | Mapping[str, Any] | None) -> TrainingConfig:
    if config is None:
        return TrainingConfig()
    if isinstance(config, TrainingConfig):
        config.validate()
        return config
    if isinstance(config, Mapping):
        return TrainingConfig.from_dict(config)
    raise ConfigError(f"config= takes a TrainingConfig or a mapping of settings; got {type(config).__name__}.")


def _fitting_tokenizer(
    adapted: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    text: TextData,
    cache_dir: Path,
    progress: bool | ProgressCallback,
) -> PreTrainedTokenizerBase:
    """The given tokenizer or a new one, proven to fit the model's rows. It never sees validation text."""
    if tokenizer is not None:
        return _proven(adapted, tokenizer)
    chosen = AdaptiveTokenizer.load_or_create(_rows(adapted), text.train, cache_dir, progress=progress)
    logger.info("tokenizer: %s", chosen.choice.reason)
    return _proven(adapted, chosen)


def _proven(adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer, where it fits the model's rows. One that alters text, as lower-casing ones do, is said to do so."""
    if tokenizer is None:
        raise TokenizerError("The data module has no tokenizer: pass tokenizer=.")
    found = TokenizerValidator.validate(tokenizer, _rows(adapted), lossless=False)
    found.raise_for_problems()
    if not found.lossless:
        logger.warning("the tokenizer does not give every text back as it was: %s", "; ".join(found.notes))
    return tokenizer


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
