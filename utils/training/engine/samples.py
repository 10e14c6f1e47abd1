"""From whatever a trainer is given to samples of the model's task, held against what the model can take. Trains nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from utils.adapters.model_adapter import AdaptedModel
from utils.errors import ConfigError, DataError, TokenizerError, TrainingError
from utils.tokenization.data_module import UniversalDataModule, check_fits
from utils.tokenization.documents import Documents, as_documents
from utils.tokenization.masked_lm import MaskedBlocks
from utils.tokenization.packing import PackedBlocks, pack_documents
from utils.tokenization.samples import DEFAULT_BLOCK_LENGTH, Samples
from utils.tokenization.streaming import StreamedBlocks, StreamedText
from utils.tokenization.vision import VisionDataCollator
from utils.training.engine.loss import LossStrategyRegistry
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from utils.training.task_spec import TaskSpec

logger = logging.getLogger(__name__)


class SampleMaker:
    """Makes the samples of one run.

    Args:
        adapted: the model; `contract.task` is the task.
        settings: of the run.
        tokenizer: for texts.
        cache_dir: folder for tokens.
        spec: which column is what; None takes usual names.

    Attributes:
        tokenizer: the given one, else that of the data module.
        class_names: of the data, once samples were made.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        settings: TrainingConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        cache_dir: Path,
        spec: TaskSpec | None = None,
    ) -> None:
        self.adapted, self.settings, self.tokenizer = adapted, settings, tokenizer
        self.cache_dir, self.spec = cache_dir, spec
        self.class_names: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """The task of the model."""
        return self.adapted.contract.task

    def both(self, train_data: Any, val_data: Any) -> tuple[Samples, Samples | None]:
        """Samples of both parts.

        Raises:
            DataError: data of another kind or task. TokenIdError: ids or lengths that the model cannot take.
            TrainingError: a data module of another task.
        """
        train, validation = self._made(train_data, val_data)
        for samples, what in ((train, "training"), (validation, "validation")):
            if samples is not None:
                check_fits(samples, self.adapted.contract.vocab_size, self.adapted.contract.max_length, what)
        return train, validation

    def _made(self, train_data: Any, val_data: Any) -> tuple[Samples, Samples | None]:
        if isinstance(train_data, UniversalDataModule):
            return self._parts_of(train_data)
        if isinstance(train_data, StreamedText):
            train_data = self._streamed(train_data)
        if self.task != "lm" and not isinstance(train_data, (Samples, np.ndarray, torch.Tensor)):
            return self._parts_of(self._data_module(train_data, val_data))
        train = self._samples(train_data, "training")
        return train, None if val_data is None else self._samples(val_data, "validation")

    def _streamed(self, text: StreamedText) -> StreamedBlocks:
        """As many blocks as the steps of the run need.

        Raises:
            ConfigError: no number of steps.
        """
        settings = self.settings
        if settings.max_steps is None:
            raise ConfigError("A stream has no length: set max_steps=, the optimizer steps after which training ends.")
        if self.tokenizer is None:
            raise TokenizerError("The training data is a stream of text: pass tokenizer=.")
        count = settings.max_steps * settings.batch_size * settings.gradient_accumulation_steps
        return StreamedBlocks(text, self.tokenizer, self._block_length(), count, settings.random_seed)

    def _parts_of(self, module: UniversalDataModule) -> tuple[Samples, Samples | None]:
        if module.task != self.task:
            way = ", or set objective='masked'." if (module.task, self.task) == ("masked", "lm") else "."
            raise TrainingError(
                f"The data module is for the task {module.task!r}, and the model is trained on {self.task!r}. Make the module "
                f"with task={self.task!r}{way}"
            )
        found = module.train_samples, module.validation_samples
        self.tokenizer = self.tokenizer if self.tokenizer is not None else module.tokenizer
        self.class_names = module.class_names
        return found

    def _data_module(self, train_data: Any, val_data: Any) -> UniversalDataModule:
        settings, vision = self.settings, self.task == "vision"
        return UniversalDataModule(
            [train_data] if isinstance(train_data, str) else train_data,
            self.tokenizer,
            self.task,
            validation=[val_data] if isinstance(val_data, str) else val_data,
            validation_fraction=0.0,
            batch_size=settings.batch_size,
            max_length=2 if vision else self._block_length(),
            seed=settings.random_seed,
            cache_dir=self.cache_dir,
            collator=VisionDataCollator.for_shape(self.adapted.contract.image_shape) if vision else None,
            **({} if self.spec is None else self.spec.for_data()),
        )

    def _block_length(self) -> int:
        limit, asked = self.adapted.contract.max_length, self.settings.max_length
        if limit is None and asked is None:
            logger.info("neither max_length nor the model names a limit: blocks of %d tokens", DEFAULT_BLOCK_LENGTH)
            return DEFAULT_BLOCK_LENGTH
        return min(value for value in (limit, asked) if value is not None)

    def _samples(self, data: Any, what: str) -> Samples:
        """One part, from ready samples, token ids or texts."""
        if isinstance(data, torch.Tensor):
            data = data.cpu().numpy()
        if isinstance(data, np.ndarray):
            data = PackedBlocks(data)
        if isinstance(data, Samples):
            return self._for_task(data, what)
        if isinstance(data, (list, tuple)) and data and all(isinstance(text, str) for text in data):
            data = as_documents(data)
        if not isinstance(data, (str, Documents)) or not len(data):
            raise DataError(
                f"The {what} data must be texts, PackedBlocks or whole numbers of shape (N, T); got "
                f"{'an empty ' if isinstance(data, Documents) else ''}{type(data).__name__}."
            )
        if self.tokenizer is None:
            raise TokenizerError(
                f"The {what} data is text, and there is no tokenizer to turn it into ids: pass tokenizer=."
            )
        return pack_documents(data, self.tokenizer, self._block_length(), self.cache_dir, what)

    def _for_task(self, samples: Samples, what: str) -> Samples:
        """Ready samples, where they are for the model's task; blocks of text get their tokens hidden."""
        if self.task == "masked" and isinstance(samples, PackedBlocks):
            if self.tokenizer is None:
                raise TokenizerError("Hiding tokens needs to know which ids are special: pass tokenizer=.")
            return MaskedBlocks(samples, self.tokenizer, self.settings.random_seed, what == "validation")
        if samples.task not in (None, self.task):
            raise DataError(
                f"The {what} data ({type(samples).__name__}) is made for the task {samples.task!r}, and the model is trained on "
                f"{self.task!r}. Pass what UniversalDataModule takes for task={self.task!r}."
            )
        LossStrategyRegistry.for_task(self.task).check(samples.__getitems__([0]))
        return samples
