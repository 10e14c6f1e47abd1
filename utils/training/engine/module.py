"""The LightningModule of the engine: a batch becomes a loss by the run's strategy, whatever memory has to say about it.

Where a micro-batch does not fit, it is halved and accumulated instead, from the beginning of its window: the step that
follows is the one that would have been. Leaves optimizer and schedule to `UniversalModelAdapter`.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from utils.adapters.lightning_adapter import UniversalModelAdapter
from utils.adapters.model_adapter import AdaptedModel
from utils.errors import TrainingError
from utils.tokenization.loaders import SHARE
from utils.training.engine.loss import LossStrategy
from utils.training.engine.memory import is_out_of_memory
from utils.training.engine.metrics import MetricsEngine
from utils.training.engine.processes import ALONE, Processes
from utils.training.engine.sharding import ShardedStrategy, clip_shards, gather_into, sharded
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]
T = TypeVar("T")

SPLIT = "micro_batch_split"
"""Key of a checkpoint under which the number of parts of a micro-batch lies."""


class TrainingModule(UniversalModelAdapter):
    """A training and a validation step for any task.

    `training_step` returns `loss`, and `batch_loss` where the loss is known only after the backward pass; as callbacks see
    them both are divided by the accumulation, so that the sum over a window is the loss of its optimizer step.

    Args:
        adapted: the model.
        settings: of the run.
        total_steps: optimizer steps of the whole run.
        strategy: what a batch costs.
        tokenizer: kept for callers.
        processes: those that train together. Several of them take a step in which each has its part, so none can halve its
            micro-batches by itself.

    Attributes:
        split: parts into which a micro-batch is cut.
        gradient_norm: gives the norm of all gradients of the step where somebody measures it; see `GradientMonitor.total`.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        settings: TrainingConfig,
        total_steps: int,
        strategy: LossStrategy,
        tokenizer: Any = None,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(
            adapted,
            tokenizer=tokenizer,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_ratio=settings.warmup_ratio,
            total_steps=total_steps,
            final_rate=settings.final_learning_rate_ratio,
            schedule=settings.learning_rate_schedule,
        )
        self.strategy, self.metrics, self.label_smoothing = strategy, MetricsEngine(strategy), settings.label_smoothing
        self.gradient_norm: Callable[[], torch.Tensor | None] | None = None
        self.split, self.processes, self._trainable = 1, processes, 0
        self._whole: list[AdaptedModel] | None = None  # in a list, so that it is no part of this module
        self._window: list[Batch] = []
        self._graph: torch.Tensor | None = (
            None  # the loss with its graph, held nowhere else: dropping it frees everything
        )
        self._leaf, self._late = torch.empty(0), torch.empty(0)

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes the name of each hook here, fifty times a step; `nn.Module` would look for a tensor each time."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ---- training ---------------------------------------------------------------------------------------------------
    def training_step(self, batch: Batch, batch_index: int) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Loss of one micro-batch in nats per label, times its share in the accumulation window.

        What Lightning gets is a copy of the loss without its graph; `backward` leads the gradient on.
        """
        if batch_index % self._accumulation() == 0:
            self._window = []
            self.strategy.check(batch)
        if self.processes.several:  # their strategies follow the graph of what is returned
            return {"loss": self._or_nothing_fits(lambda: self._loss_of(batch))}
        self._window.append(batch)
        self._graph = self._unless_memory_ends(lambda: self._loss_of(batch)) if self.split == 1 else None
        if self._graph is None and self.split == 1:
            self._halve()
        if self._graph is not None:
            self._leaf = self._graph.detach().clone().requires_grad_()
            return {"loss": self._leaf}
        self._leaf, self._late = (
            torch.zeros((), device=self.device, requires_grad=True),
            torch.zeros((), device=self.device),
        )
        return {"loss": self._leaf, "batch_loss": self._late}

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the micro-batch; where memory ends on the way, those of its whole window again, in smaller parts."""
        if self.processes.several:
            self._or_nothing_fits(lambda: [loss.backward()])
            return
        loss.backward()
        factor = self._leaf.grad  # what Lightning multiplied the loss by: accumulation and gradient scale
        assert factor is not None
        graph, self._graph = self._graph, None
        if graph is not None:
            held = [graph]
            del graph
            losses = self._unless_memory_ends(lambda: _led_back(held, factor))
        else:
            losses = self._unless_memory_ends(lambda: [self._backward_in_parts(self._window[-1], factor)])
        while losses is None:
            self._halve()
            self.zero_grad(set_to_none=True)
            losses = self._unless_memory_ends(lambda: [self._backward_in_parts(one, factor) for one in self._window])
        if losses:
            self._late.copy_(losses[-1] / self._accumulation())

    def on_train_epoch_start(self) -> None:
        """Count what is trained as its norm is measured: over the parameters that were trainable when the epoch began."""
        self._trainable = sum(p.requires_grad for p in self.parameters())

    on_train_start = on_train_epoch_start  # Lightning announces no epoch where a run goes on in the middle of one

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm that was measured already; it is the costly half of clipping."""
        total = self.gradient_norm() if self.gradient_norm is not None else None
        if total is None or not gradient_clip_val or gradient_clip_algorithm not in (None, "norm"):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if len(parameters) != self._trainable:  # an optimizer of some of them
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        if self._whole is not None:
            clip_shards(parameters, gradient_clip_val, total)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, total)

    # ---- shards -----------------------------------------------------------------------------------------------------
    def configure_model(self) -> None:
        """Train a copy in shards where the strategy spreads the model over the processes."""
        mesh = self.device_mesh
        if mesh is not None and self._whole is None:
            self.processes.share([*self.adapted.parameters(), *self.adapted.buffers()])
            strategy = self.trainer.strategy
            assert isinstance(strategy, ShardedStrategy)  # the only one here that brings a mesh
            self._whole, self.adapted = [self.adapted], sharded(self.adapted, mesh, strategy.blocks)

    def put_together(self) -> None:
        """Have the whole model again, with the weights of the shards. Every process must call it."""
        if self._whole is not None:
            (whole,), self._whole = self._whole, None
            gather_into(whole, self.adapted)
            self.adapted = whole.to(self.device)

    def _backward_in_parts(self, batch: Batch, factor: torch.Tensor) -> torch.Tensor:
        """Gradients of a micro-batch, part by part, and its loss; each label weighs what it does in the whole."""
        whole, total = self.strategy.counted(batch).clamp(min=1), torch.zeros((), device=self.device)
        for part in _parts(batch, self.split):
            with self.trainer.precision_plugin.forward_context():
                loss = self._loss_of(part) * (self.strategy.counted(part) / whole)
            loss.backward(factor)
            total += loss.detach()
        return total

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        loss = self.strategy(self.adapted, batch, self.label_smoothing).loss
        assert loss is not None  # a strategy gives one
        return loss * batch[SHARE] if SHARE in batch else loss

    def _accumulation(self) -> int:
        return int(self.trainer.accumulate_grad_batches)

    # ---- memory -----------------------------------------------------------------------------------------------------
    def _unless_memory_ends(self, action: Callable[[], T]) -> T | None:
        """What the action gives, or None where the GPU has no memory left for it; what it had taken is free then."""
        try:
            return action()
        except RuntimeError as error:  # its traceback holds the graph: freeing comes after this block
            if not is_out_of_memory(error):
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _or_nothing_fits(self, action: Callable[[], T]) -> T:
        """What the action gives.

        Raises:
            TrainingError: memory ended, which several processes cannot mend on the way.
        """
        found = self._unless_memory_ends(action)
        if found is None:
            raise TrainingError(
                f"Out of memory in process {self.processes.rank} of {self.processes.world}. Begin a run with half the "
                "batch_size and twice the gradient_accumulation_steps, which learns the same, or set "
                "gradient_checkpointing=True."
            )
        return found

    def _halve(self) -> None:
        """Split micro-batches further.

        Raises:
            TrainingError: they are single samples already.
        """
        rows = max(_rows(batch) for batch in self._window)
        if self.split >= rows:
            raise self._nothing_fits()
        self.split = min(2 * self.split, rows)
        logger.warning(
            "out of memory: micro-batches of %d samples are cut into %d parts from here on, which adds up to the same steps",
            rows,
            self.split,
        )

    def _nothing_fits(self) -> TrainingError:
        return TrainingError(
            f"Not even one sample at a time fits into the memory of the {self.device.type.upper()} device. Set "
            "gradient_checkpointing=True, lower max_length, or train a smaller model."
        )

    # ---- validation -------------------------------------------------------------------------------------------------
    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self.metrics.reset()

    def validation_step(self, batch: Batch, batch_index: int) -> None:  # type: ignore[override]
        """Add one batch to the measures; every label counts alike."""
        counts = SHARE not in batch  # one that only keeps the processes in step has it
        pending = list(_parts(batch, self.split))
        while pending:
            part = pending.pop(0)
            outputs = self._unless_memory_ends(lambda part=part: self.strategy(self.adapted, part))  # type: ignore[misc]
            if outputs is not None:
                self.metrics.update(outputs, part, counts)
            elif _rows(part) > 1:
                pending = [*_parts(part, 2), *pending]
            else:
                raise self._nothing_fits()

    def on_validation_epoch_end(self) -> None:
        """Put the measures of all processes together, and let other callbacks of Lightning see them."""
        self.metrics.gather(self.processes)
        self.log_dict({f"val_{name}": value for name, value in self.metrics.compute().items()})

    # ---- checkpoints ------------------------------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep into how many parts micro-batches are cut."""
        checkpoint[SPLIT] = self.split

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with as many."""
        self.split = 1 if self.processes.several else int(checkpoint.get(SPLIT, 1))


def _rows(batch: Batch) -> int:
    return max(len(value) for value in batch.values() if value.dim())


def _parts(batch: Batch, number: int) -> Iterator[Batch]:
    """A batch cut along its first axis into at most so many parts; what has no axis goes to each."""
    if number == 1:
        yield batch
        return
    rows = _rows(batch)
    size = -(-rows // number)
    for begin in range(0, rows, size):
        yield {name: value[begin : begin + size] if value.dim() else value for name, value in batch.items()}


def _led_back(held: list[torch.Tensor], factor: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of the one loss in the list, which is taken out of it, so that its graph is free where this fails."""
    held.pop().backward(factor)
    return []
