"""What changes in a training where several processes share it: Lightning's strategy, and who opens the run. Talks through
`processes`, and leaves the dealing of data to `tokenization.pieces`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.preserved import preserved
from utils.errors import ConfigError
from utils.tokenization.batch_order import Window
from utils.training.engine.processes import Processes
from utils.training.engine.sharding import ShardedStrategy, few_rows, separate_blocks
from utils.training.run_folder import RunFolder
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)


def check_enough(window: Window, processes: Processes) -> None:
    """Refuse an optimizer step with fewer samples than processes.

    Raises:
        ConfigError: it has.
    """
    samples = window.batch_size * window.accumulation
    if samples < processes.world:
        raise ConfigError(
            f"An optimizer step takes {samples} sample{'s' * (samples > 1)} (batch_size × gradient_accumulation_steps, at most "
            f"all there are), fewer than the {processes.world} processes that share it. Raise batch_size, or start at most "
            f"{samples} process{'es' * (samples > 1)}."
        )


def opened_once(processes: Processes, open_run: Callable[[], RunFolder]) -> RunFolder:
    """The run, which the leading process opens and whose lock it holds."""
    held: list[RunFolder] = []

    def opened() -> RunFolder:
        held.append(open_run())
        return dataclasses.replace(held[0], lock=None)

    try:
        known = processes.lead(opened) if processes.several else open_run()
    except BaseException:
        for run in held:
            run.leave()
        raise
    return held[0] if held else known


@contextlib.contextmanager
def quiet_followers(processes: Processes) -> Iterator[None]:
    """Let only the leading process say what all of them would say."""
    package = logging.getLogger("utils")
    level = package.level
    if not processes.leads:
        package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)


def spread(
    settings: TrainingConfig,
    processes: Processes,
    adapted: AdaptedModel,
    sample: Callable[[], Mapping[str, torch.Tensor]],
) -> dict[str, Any]:
    """What a `pytorch_lightning.Trainer` is told about devices, nodes and strategy.

    Args:
        settings: `strategy` and `devices` are read.
        processes: those that train together.
        adapted: the model.
        sample: makes a batch of training data, on which is found out whether DDP must look for unused weights, and which
            blocks can be sharded by themselves.
    """
    if not processes.several:
        return {"devices": 1}
    from pytorch_lightning.strategies import DDPStrategy

    devices = {"devices": settings.devices, "num_nodes": processes.world // settings.devices}
    if settings.strategy == "fsdp":
        blocks = processes.lead(lambda: separate_blocks(adapted, sample()))
        logger.info("each process gathers %s", _gathered(blocks))
        return {**devices, "strategy": ShardedStrategy(processes.world, blocks)}
    unused = processes.lead(lambda: has_unused_weights(adapted, sample()))
    return {**devices, "strategy": DDPStrategy(find_unused_parameters=unused)}


def has_unused_weights(adapted: AdaptedModel, sample: Mapping[str, torch.Tensor]) -> bool:
    """Whether the loss of some pass depends on some trainable weights not at all: DDP waits for gradients of all, unless it is
    told.
    """
    with preserved(adapted):
        adapted.train()
        for row in few_rows(sample):
            adapted.zero_grad(set_to_none=True)
            loss = adapted.on_batch({name: value.to(adapted.device) for name, value in row.items()}).loss
            assert loss is not None  # on_batch gives labels
            loss.backward()
            if any(weight.requires_grad and weight.grad is None for weight in adapted.parameters()):
                return True
    return False


def _gathered(blocks: list[str]) -> str:
    if not blocks:
        return "the whole model for each pass: it has no repeated blocks whose weights nothing else reads"
    return f"one of {len(blocks)} blocks at a time ({blocks[0]} to {blocks[-1]})"
