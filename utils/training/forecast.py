"""What a training will take - time, memory, room for checkpoints - measured on the model itself before the first step.

Trains a copy, never the model. Which micro-batch fits a GPU is found out by `engine.memory`; this file only estimates.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils._tables import html_table, text_table
from utils.adapters.fused_step import takes_fused
from utils.adapters.model_adapter import AdaptedModel
from utils.checks.limits import available_memory
from utils.checks.memory import GB
from utils.tokenization.batch_order import EpochBatchSampler, Window, fit_window
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.samples import Samples
from utils.training.engine.memory import estimate_memory, largest_batches
from utils.training.engine.precision import autocast_of, batch_loss, pick_precision
from utils.training.objective import choose_objective
from utils.training.training_config import TrainingConfig

WARM_UP_STEPS, MEASURED_STEPS = 2, 6
STATE_BYTES, STEP_BYTES = 20_000, 40
"""Bytes of a checkpoint besides tensors (random states, counters, settings), and of the histories of one optimizer step."""


@dataclass(frozen=True)
class Cost:
    """Median seconds of an optimizer step (forward, backward, AdamW), of a batch of validation (forward), and of each further
    micro-batch of a step (forward, backward), where that was measured.
    """

    step: float
    validation_batch: float
    micro_batch: float | None = None


def measure(
    adapted: AdaptedModel,
    batch_size: int,
    length: int,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device | None = None,
) -> Cost:
    """Time a copy of the model that `train` would train: with causal attention, on its device, in its precision.

    Args:
        adapted: the model; it is left as it was.
        batch_size: sequences per step.
        length: tokens per sequence.
        clock: seconds, monotonic.
        device: where to measure; None takes the one that `train` takes.

    Raises:
        TrainingError: the model cannot be trained honestly, as in `train`.
    """
    rows = adapted.contract.vocab_size or 2
    ids = torch.randint(rows, (batch_size, length), generator=torch.Generator().manual_seed(0))
    return measure_batch(adapted, {"input_ids": ids}, clock=clock, device=device)


def measure_batch(
    adapted: AdaptedModel,
    batch: Mapping[str, torch.Tensor],
    accumulation: int = 1,
    precision: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device | None = None,
    repeats: int = MEASURED_STEPS,
) -> Cost:
    """As `measure`, on a batch as the data module gives it, for any task.

    Args:
        adapted: the model; it is left as it was.
        batch: one micro-batch; its labels where the task has them.
        accumulation: micro-batches per optimizer step.
        precision: of the training; None takes what "auto" takes.
        clock: seconds, monotonic.
        device: where to measure; None takes the one that `train` takes.
        repeats: of each measurement, after the warm-up.
    """
    trained = choose_objective(adapted)[0] if adapted.contract.task == "lm" else adapted
    device = device or training_device()
    precision = precision or pick_precision(device)[0]
    copied = copy.deepcopy(trained).to(device)
    fused = takes_fused(copied.parameters(), precision == "16-mixed")
    optimizer = torch.optim.AdamW(copied.parameters(), lr=1e-4, fused=fused)
    moved = {name: value.to(device) for name, value in batch.items()}

    def forward() -> torch.Tensor:
        with autocast_of(precision, device):
            return batch_loss(copied, moved)

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.random.fork_rng():
        copied.train()
        per_step, further = _median(step, device, clock, repeats), None
        if accumulation > 1:
            further = _median(lambda: forward().backward(), device, clock, repeats)
            per_step += (accumulation - 1) * further
        copied.eval()
        with torch.no_grad():
            return Cost(per_step, _median(forward, device, clock, repeats), further)


def training_device() -> torch.device:
    """Where `train` trains on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_per_step(
    adapted: AdaptedModel, batch_size: int, length: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median time of an optimizer step in seconds; see `measure`."""
    return measure(adapted, batch_size, length, clock).step


def steps_within(
    adapted: AdaptedModel,
    batch_size: int,
    length: int,
    seconds: float,
    most: int,
    *,
    validations: int = 0,
    validation_blocks: int = 0,
    cost: Cost | None = None,
) -> tuple[int, str]:
    """How many optimizer steps fit into a time.

    Args:
        adapted: the model that will be trained; it is left as it was.
        batch_size: sequences per step and per batch of validation.
        length: tokens per sequence.
        seconds: time for training and validation together.
        most: largest answer.
        validations: passes over the validation blocks, the one before the first step included.
        validation_blocks: sequences of one such pass.
        cost: what `measure` gave; None measures now.

    Returns:
        Steps (at least 1), and the reason in words.
    """
    cost = cost or measure(adapted, batch_size, length)
    validating = validations * -(-validation_blocks // batch_size) * cost.validation_batch
    steps = max(1, min(most, int((seconds - validating) / cost.step)))
    found = f"a step takes {cost.step * 1000:.0f} ms here: {steps} steps take about {steps * cost.step:.0f} s"
    if validating:
        found += f", {validations} validations about {validating:.0f} s more"
    return steps, found


def _median(action: Callable[[], object], device: torch.device, clock: Callable[[], float], repeats: int) -> float:
    times = []
    for _ in range(WARM_UP_STEPS + repeats):
        started = clock()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - started)
    return sorted(times[WARM_UP_STEPS:])[repeats // 2]


# ---- the forecast ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Forecast:
    """What a training will take. Estimates, each from a measurement on this machine.

    Attributes:
        steps: optimizer steps in all; steps_per_epoch: of one pass over the data.
        cost: seconds of a step and of a batch of validation.
        validation_seconds: of all validations together.
        checkpoint_bytes: one generation: weights, AdamW's two moments, averaged weights where they are kept, histories.
        generations: those that lie on the disk at most: the newest, the best, and the one that is being written.
        memory_bytes: of a training step; memory_available: what there is, None where the machine does not say.
        local_free, mirror_free: bytes free where checkpoints and mirror lie; None where there is no such place.
        device: where training runs, in words.
    """

    steps: int
    steps_per_epoch: int
    cost: Cost
    validation_seconds: float
    checkpoint_bytes: float
    generations: int
    memory_bytes: float
    memory_available: float | None
    local_free: float | None
    mirror_free: float | None
    device: str

    @property
    def minutes(self) -> float:
        """Minutes of the whole training, validations included."""
        return (self.steps * self.cost.step + self.validation_seconds) / 60

    @property
    def minutes_per_epoch(self) -> float:
        """Minutes of one pass over the data, with its share of the validations."""
        return self.minutes * self.steps_per_epoch / self.steps

    @property
    def disk_bytes(self) -> float:
        """Bytes of all generations: on the local disk, and as many again on the mirror."""
        return self.checkpoint_bytes * self.generations

    @property
    def problems(self) -> list[str]:
        """What does not fit, each with what to change."""
        found = []
        if self.memory_available is not None and self.memory_bytes > self.memory_available:
            found.append(
                f"a training step needs about {_gb(self.memory_bytes)}, {_gb(self.memory_available)} are there: lower batch_size "
                "and raise gradient_accumulation_steps (fit_batch_to_memory does that on a GPU), or lower max_length"
            )
        for place, free in (("the local disk", self.local_free), ("the mirror", self.mirror_free)):
            if free is not None and self.disk_bytes > free:
                found.append(
                    f"{self.generations} checkpoints need {_gb(self.disk_bytes)} on {place}, {_gb(free)} are free: delete old "
                    "runs, or lower keep_checkpoints"
                )
        return found

    @property
    def fits(self) -> bool:
        """Whether memory and disks hold it."""
        return not self.problems

    def rows(self) -> list[tuple[str, str]]:
        """What it says, as (what, words)."""
        epochs = self.steps / self.steps_per_epoch
        rows = [
            ("time", f"{_time(self.minutes)}: {self.steps:,} steps of {1000 * self.cost.step:.0f} ms on {self.device}"),
            ("per epoch", f"{_time(self.minutes_per_epoch)} ({self.steps_per_epoch:,} steps; {_count(epochs)} epochs)"),
            ("validations", f"{_time(self.validation_seconds / 60)} of that"),
            ("memory", f"about {_gb(self.memory_bytes)}{_of(self.memory_available)}"),
            ("checkpoint", f"{_gb(self.checkpoint_bytes)} each, {self.generations} at most"),
            ("local disk", f"{_gb(self.disk_bytes)}{_of(self.local_free)}"),
        ]
        if self.mirror_free is not None:
            rows.append(("mirror (Drive)", f"{_gb(self.disk_bytes)}{_of(self.mirror_free)}"))
        return [*rows, *(("does not fit", problem) for problem in self.problems)]

    def summary(self) -> str:
        """The forecast in a few lines of text."""
        return text_table(("", ""), self.rows(), title=f"Forecast: {'fits' if self.fits else 'does NOT fit'}")

    def _repr_html_(self) -> str:
        return html_table(("", ""), self.rows())


def forecast(
    adapted: AdaptedModel,
    config: TrainingConfig,
    train: Samples,
    validation: Samples | None = None,
    *,
    window: Window | None = None,
    workspace: str | Path | None = None,
    cost: Cost | None = None,
    device: torch.device | None = None,
    free: Callable[[Path], float | None] | None = None,
) -> Forecast:
    """What training this model on this data with these settings will take.

    Args:
        adapted: the model that will be trained; it is left as it was.
        config: the settings.
        train: training samples, as `PackedBlocks`; their own batches are timed.
        validation: validation samples; None validates never.
        window: micro-batch and accumulation where they differ from the settings', as after `fit_to_memory`.
        workspace: where runs lie; None takes `config.checkpoint_dir`.
        cost: what `measure_batch` gave; None measures now.
        device: where training runs; None takes the one that `train` takes.
        free: bytes free at a folder; None asks the system.

    Example:
        >>> print(forecast(adapted, config, blocks, validation_blocks).summary())
    """
    device = device or training_device()
    window = window or fit_window(len(train), config.batch_size, config.gradient_accumulation_steps)
    precision = config.precision if config.precision != "auto" else pick_precision(device)[0]
    cost = cost or measure_batch(
        adapted, _usual_batch(train, window, config), window.accumulation, precision, device=device
    )
    memory = estimate_memory(adapted, largest_batches(train), config.ema_decay is not None).total(window.batch_size)
    held_out = 0 if validation is None else len(validation)
    return projected(adapted, config, len(train), held_out, window, cost, memory, device, workspace, free)


def projected(
    adapted: AdaptedModel,
    config: TrainingConfig,
    samples: int,
    validation: int,
    window: Window,
    cost: Cost,
    memory_bytes: float,
    device: torch.device,
    workspace: str | Path | None = None,
    free: Callable[[Path], float | None] | None = None,
) -> Forecast:
    """The forecast that follows from what was measured; nothing is run.

    Args:
        adapted: the model.
        config: the settings.
        samples: of the training part.
        validation: samples of the other part; without them nothing is validated.
        window: micro-batch and accumulation.
        cost: of a step with them.
        memory_bytes: of a step with them.
        device: where training runs.
        workspace: where runs lie; None takes `config.checkpoint_dir`.
        free: bytes free at a folder; None asks the system.
    """
    free = free or free_bytes
    per_epoch = window.steps(samples)
    steps = config.max_steps if config.max_steps is not None else config.epochs * per_epoch
    return Forecast(
        steps=steps,
        steps_per_epoch=per_epoch,
        cost=cost,
        validation_seconds=_validation_seconds(config, steps, per_epoch, validation, window, cost),
        checkpoint_bytes=checkpoint_bytes(adapted, config.ema_decay is not None, steps),
        generations=config.keep_checkpoints + (validation > 0) + 1,
        memory_bytes=memory_bytes,
        memory_available=_memory_of(device),
        local_free=free(Path(workspace if workspace is not None else config.checkpoint_dir).expanduser()),
        mirror_free=None if config.mirror_dir is None else free(Path(config.mirror_dir).expanduser()),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
    )


def checkpoint_bytes(adapted: AdaptedModel, ema: bool = False, steps: int = 0) -> float:
    """Bytes of one checkpoint: weights and buffers, two moments of what is trained, averages, histories of `steps` steps."""
    weights = sum(
        t.numel() * t.element_size() for t in {id(t): t for t in adapted.state_dict(keep_vars=True).values()}.values()
    )
    moments = 2 * sum(p.numel() * p.element_size() for p in adapted.parameters() if p.requires_grad)
    return float(weights * (2 if ema else 1) + moments + STATE_BYTES + STEP_BYTES * steps)


def free_bytes(folder: Path) -> float | None:
    """Bytes free on the disk where a folder lies or will lie; None where that cannot be told."""
    existing = next((place for place in (folder, *folder.resolve().parents) if place.exists()), None)
    try:
        return None if existing is None else float(shutil.disk_usage(existing).free)
    except OSError:  # a mount that is gone
        return None


def _usual_batch(train: Samples, window: Window, config: TrainingConfig) -> Mapping[str, torch.Tensor]:
    """The micro-batch of the first epoch whose padded size is the median one."""
    sampler = DataLoaderFactory(config.random_seed).train(train, window).batch_sampler
    assert isinstance(sampler, EpochBatchSampler)
    batches = sampler.batches(0)
    lengths = train.lengths
    if lengths is None:
        return train.__getitems__(batches[0])
    sizes = [len(batch) * int(lengths[np.asarray(batch)].max()) for batch in batches]
    return train.__getitems__(batches[int(np.argsort(sizes)[len(sizes) // 2])])


def _validation_seconds(
    config: TrainingConfig, steps: int, per_epoch: int, samples: int, window: Window, cost: Cost
) -> float:
    """Of all validations of so many samples: before the first step, at intervals, and at the end."""
    every = config.val_every_n_steps or per_epoch
    return (1 + -(-steps // every)) * -(-samples // window.batch_size) * cost.validation_batch


def _memory_of(device: torch.device) -> float:
    """Bytes that training may take: those of the GPU, or what this machine has free."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else available_memory()


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _of(size: float | None) -> str:
    return "" if size is None else f" of {_gb(size)}"


def _count(number: float) -> str:
    """A number of passes: two digits below ten, whole above."""
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def _time(minutes: float) -> str:
    return (
        f"{minutes / 60:.1f} h" if minutes >= 120 else f"{minutes:.1f} min" if minutes >= 2 else f"{60 * minutes:.1f} s"
    )
