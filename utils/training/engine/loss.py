"""What a batch costs, by task: one strategy each, found by name. Knows batches and outputs, no trainer.

The shift of language models and the models' own auxiliary losses are settled by `AdaptedModel`; weighing micro-batches
within an accumulation window is for `engine.module`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.model_outputs import ModelOutputs, aligned, counted
from utils.errors import ConfigError, DataError

Batch = Mapping[str, torch.Tensor]


class LossStrategy(ABC):
    """How one task turns a batch into a loss. Subclass, and register under a name, for a loss of your own.

    Attributes:
        name: under which the registry knows it.
        task: of `utils.adapters.contract.TASKS`.
        needs: keys without which a batch cannot be scored.

    Example:
        >>> @LossStrategyRegistry.register
        ... class Focal(ClassificationLoss):
        ...     name = "focal"
        ...     def __call__(self, adapted, batch, label_smoothing=0.0):
        ...         out = adapted.on_batch(batch)
        ...         picked = out.logits.log_softmax(-1).gather(-1, batch["labels"][:, None])[:, 0]
        ...         return ModelOutputs(out.logits, (-((1 - picked.exp()) ** 2) * picked).mean())
    """

    name: ClassVar[str]
    task: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    def __call__(self, adapted: AdaptedModel, batch: Batch, label_smoothing: float = 0.0) -> ModelOutputs:
        """Logits, and the mean loss in nats over the labels that count."""
        return adapted.on_batch(batch, label_smoothing)

    @abstractmethod
    def labels(self, batch: Batch) -> torch.Tensor:
        """Labels as the batch gives them: -100 carries no loss."""

    @property
    def shift(self) -> int:
        """1 where scores at t are about the token at t + 1."""
        return 0

    def targets(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (…, V) beside the labels (…) that they are held against."""
        return aligned(logits, self.labels(batch), self.shift)

    def counted(self, batch: Batch) -> torch.Tensor:
        """Labels that carry loss, as a scalar on the batch's device."""
        return counted(self.labels(batch), self.shift)

    def check(self, batch: Batch) -> None:
        """Refuse a batch that cannot be scored.

        Raises:
            DataError: a key is missing.
        """
        missing = [key for key in self.needs if key not in batch]
        if missing:
            raise DataError(
                f"The loss {self.name!r} needs {', '.join(map(repr, self.needs))} in each batch; this one has "
                f"{', '.join(map(repr, batch))}. Take a UniversalDataModule of the task {self.task!r}, or add {missing[0]!r}."
            )


class NextTokenLoss(LossStrategy):
    """Each position predicts the next token; labels are the ids themselves where the batch brings none."""

    name, task, needs = "next_token", "lm", ("input_ids",)

    @property
    def shift(self) -> int:
        """One."""
        return 1

    def labels(self, batch: Batch) -> torch.Tensor:
        """(B, T), unshifted."""
        return batch.get("labels", batch["input_ids"])


class MaskedLoss(LossStrategy):
    """Hidden tokens are named at their own position; all other labels are -100."""

    name, task, needs = "masked", "masked", ("input_ids", "labels")

    def labels(self, batch: Batch) -> torch.Tensor:
        """(B, T), the true id where a token was hidden."""
        return batch["labels"]


class SequenceToSequenceLoss(LossStrategy):
    """The decoder says the labels; what it reads is the labels shifted right, which the contract sees to."""

    name, task, needs = "seq2seq", "seq2seq", ("input_ids", "labels")

    def labels(self, batch: Batch) -> torch.Tensor:
        """(B, T_target)."""
        return batch["labels"]


class ClassificationLoss(LossStrategy):
    """One class for each text."""

    name, task, needs = "classification", "classification", ("input_ids", "labels")

    def labels(self, batch: Batch) -> torch.Tensor:
        """(B,)."""
        return batch["labels"]


class VisionLoss(LossStrategy):
    """One class for each image."""

    name, task, needs = "vision", "vision", ("pixel_values", "labels")

    def labels(self, batch: Batch) -> torch.Tensor:
        """(B,)."""
        return batch["labels"]


Kind = TypeVar("Kind", bound=type[LossStrategy])


class LossStrategyRegistry:
    """All strategies by name."""

    _known: ClassVar[dict[str, type[LossStrategy]]] = {
        kind.name: kind for kind in (NextTokenLoss, MaskedLoss, SequenceToSequenceLoss, ClassificationLoss, VisionLoss)
    }

    @classmethod
    def register(cls, kind: Kind) -> Kind:
        """Add a strategy under its name; usable as a decorator.

        Raises:
            ConfigError: no name or task, or a name that is taken.
        """
        name = getattr(kind, "name", None)
        if not isinstance(name, str) or not isinstance(getattr(kind, "task", None), str):
            raise ConfigError(f"The loss strategy {kind.__name__} needs a name and a task as class attributes.")
        if cls._known.get(name, kind) is not kind:
            raise ConfigError(
                f"A loss strategy {name!r} is there already ({cls._known[name].__name__}). Choose another name."
            )
        cls._known[name] = kind
        return kind

    @classmethod
    def get(cls, name: str) -> LossStrategy:
        """The strategy of that name.

        Raises:
            ConfigError: there is none; the message holds the nearest.
        """
        if name not in cls._known:
            near = difflib.get_close_matches(str(name), cls._known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"There is no loss strategy {name!r}{hint} Known: {', '.join(cls._known)}.")
        return cls._known[name]()

    @classmethod
    def for_task(cls, task: str) -> LossStrategy:
        """The usual strategy of a task."""
        return cls.get("next_token" if task == "lm" else task)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All names."""
        return tuple(cls._known)
