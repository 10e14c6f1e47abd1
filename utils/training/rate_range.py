"""The learning-rate range test: a short training whose rate rises until the loss does. Trains a copy, never the model.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3 (arXiv:1506.01186).
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils._tables import html_table, text_table
from utils.errors import ConfigError, TrainingError
from utils.progress import ProgressCallback, ignore_progress, showing
from utils.training.training_config import TrainingConfig
from utils.training.training_core import TrainingCoordinator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.loading.model_loader import LoadedModel
    from utils.training.engine.plan import Plan
    from utils.training.engine.trainer import Trainer
    from utils.training.task_spec import TaskSpec

logger = logging.getLogger(__name__)

SMOOTHING = 0.9
"""Weight of the earlier losses in the running mean, whose bias at the beginning is taken out (as Adam's moments are)."""

RISEN = 1.5
"""The test ends where the running mean is this many times its lowest value, or a loss is not finite."""

SAFETY = 10.0
"""The proposal is the rate of the lowest running mean divided by this: at the lowest point the loss is about to rise, and a
tenth of it is the usual choice (fastai's `lr_find`, "minimum")."""

LEAST = 10
"""Steps with a finite loss that a proposal needs."""


@dataclass(frozen=True)
class RateRange:
    """What a range test found.

    Attributes:
        rates: learning rate of each step; losses: training loss of each step, nats per label.
        suggestion: a peak learning rate to begin with.
        reason: why that one, in words.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float
    reason: str

    def summary(self) -> str:
        """The proposal and its reason, and the running mean at some rates."""
        return f"learning rate {self.suggestion:.2g}: {self.reason}\n{text_table(('rate', 'loss'), self._rows())}"

    def _repr_html_(self) -> str:
        return f"<p>learning rate {self.suggestion:.2g}: {self.reason}</p>{html_table(('rate', 'loss'), self._rows())}"

    def _rows(self) -> list[tuple[str, str]]:
        pairs = list(zip(self.rates, smoothed(self.losses)))
        return [(f"{rate:.2g}", f"{loss:.3f}") for rate, loss in pairs[:: max(1, len(pairs) // 12)]]


def rate_range_test(
    model: nn.Module | LoadedModel,
    data: Any = "python-docs",
    config: TrainingConfig | Mapping[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    task_spec: TaskSpec | None = None,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    workspace: str | Path | None = None,
    progress: bool | ProgressCallback = True,
) -> RateRange:
    """Find a learning rate to begin with.

    Args:
        model: as for `train`; it is left as it was.
        data: as for `train`.
        config: as for `train`; batch size, accumulation, weight decay and seed are taken from it.
        tokenizer: as for `train`.
        task_spec: as for `train`.
        low: rate of the first step, from which it rises by the same factor each step.
        high: rate of the last step.
        steps: optimizer steps at most; the test ends earlier where the loss rises.
        workspace: as for `train`; only prepared data are kept there.
        progress: True shows a display, False none; or a callable (steps done, steps in total, note).

    Raises:
        ConfigError: rates or steps that make no range.
        TrainingError: the loss is not finite from the beginning on.

    Example:
        >>> found = rate_range_test(adapted, "python-docs")
        >>> config = TrainingConfig(learning_rate=found.suggestion)
    """
    if not 0 < low < high <= 10 or steps < LEAST:
        raise ConfigError(
            f"A range test rises from a rate above 0 to a higher one of at most 10, in {LEAST} steps or more; got low={low!r}, "
            f"high={high!r}, steps={steps!r}."
        )
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    coordinator = RateRangeCoordinator(
        copied(model),
        data,
        tokenizer=tokenizer,
        training_config=config,
        task_spec=task_spec,
        workspace=workspace,
        progress=False,
        resume="never",
    )
    with showing(progress, "Learning-rate range test", "steps") as report:
        return coordinator.measured(rates, report)


class RateRangeCoordinator(TrainingCoordinator):
    """The walk of `train` up to its first step, and the range test instead of the training."""

    def measured(self, rates: Sequence[float], progress: ProgressCallback = ignore_progress) -> RateRange:
        """Losses at rising rates."""
        train_part, validation_part = self._parts(False)
        return losses_at(self._trainer(ignore_progress), train_part, validation_part, rates, progress)


def losses_at(
    trainer: Trainer,
    train_data: Any,
    val_data: Any,
    rates: Sequence[float],
    progress: ProgressCallback = ignore_progress,
) -> RateRange:
    """The training losses of a trainer's model on its data, one optimizer step at each rate. Trains the trainer's model."""
    from utils.adapters.lightning_adapter import UniversalModelAdapter
    from utils.training.engine.precision import autocast_of, batch_loss
    from utils.training.seed_manager import set_random_seed

    settings = trainer.settings
    set_random_seed(settings.random_seed, settings.deterministic)
    trainer.adapted, _ = trainer._setup_objective(trainer.adapted)
    plan = trainer._setup_data(train_data, val_data)
    trainer._setup_initialisation(plan, started=False)
    precision, _ = trainer._setup_precision(plan)
    adapted = trainer.adapted.to(trainer.device)
    adapted.train()
    optimizer = UniversalModelAdapter(adapted, weight_decay=settings.weight_decay).usual_optimizer()
    batches, losses = _batches(plan, settings), list[float]()
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = 0.0
        for batch in itertools.islice(batches, plan.window.accumulation):
            with autocast_of(precision, trainer.device):
                part = batch_loss(adapted, batch) / plan.window.accumulation
            part.backward()
            loss += float(part.detach())
        losses.append(loss)
        progress(step + 1, len(rates), f"rate {rate:.1e} · loss {loss:.3f}")
        if not math.isfinite(loss) or _has_risen(losses):
            break
        if settings.gradient_clip_norm:
            torch.nn.utils.clip_grad_norm_(adapted.parameters(), settings.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return proposed(rates[: len(losses)], losses)


def proposed(rates: Sequence[float], losses: Sequence[float]) -> RateRange:
    """The rate that losses at rising rates speak for.

    Raises:
        TrainingError: fewer than `LEAST` losses are finite.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < LEAST:
        raise TrainingError(
            f"The range test saw {len(finite)} finite losses, and a proposal needs {LEAST}: the loss is not finite or rises at a "
            f"rate of {rates[0]:.1e} already. Validate the model (utils.validate), or begin at a lower rate (low=)."
        )
    means = smoothed(finite)
    lowest = min(range(len(means)), key=means.__getitem__)
    rate = rates[lowest] / SAFETY
    ended = "rises beyond it" if lowest < len(losses) - 1 else "still fell at the highest rate"
    reason = f"a tenth of {rates[lowest]:.2g}, where the running mean of the loss is lowest ({means[lowest]:.3f}); it {ended}"
    return RateRange(tuple(rates[: len(losses)]), tuple(losses), rate, reason)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Running means without the bias of their beginning."""
    found, mean = [], 0.0
    for step, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**step))
    return found


def copied(model: nn.Module | LoadedModel) -> AdaptedModel:
    """The adapted model as an object of its own."""
    from utils.adapters.model_adapter import adapt

    return copy.deepcopy(adapt(model))


def _has_risen(losses: Sequence[float]) -> bool:
    means = smoothed(losses)
    return len(means) > LEAST and means[-1] > RISEN * min(means)


def _batches(plan: Plan, settings: TrainingConfig) -> Iterator[Mapping[str, torch.Tensor]]:
    """Micro-batches in the order in which a training sees them, epoch after epoch."""
    from utils.tokenization.batch_order import EpochBatchSampler
    from utils.tokenization.loaders import DataLoaderFactory

    sampler = DataLoaderFactory(settings.random_seed).train(plan.train, plan.window).batch_sampler
    assert isinstance(sampler, EpochBatchSampler)
    for epoch in itertools.count():
        for indices in sampler.batches(epoch):
            yield plan.train.__getitems__(indices)
