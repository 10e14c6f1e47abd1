"""What the engine costs: `python benchmarks/training_throughput.py`.

A decoder of two million parameters trains at 8 × 128 tokens on two threads, in turns: by a bare PyTorch loop, by our
`Trainer`, by a plain `pytorch_lightning.Trainer` with its default callbacks, and by `transformers.Trainer`. Each turn is one
short run; steps are told apart by when their batch is asked for, so that setting up and ending a run do not count. One round
holds a turn of each, in rotating order, and gives one ratio each; figures are medians over all rounds with their 95%
intervals, by the clock and by processor time (programs beside this one only touch the former, mostly). The bare loop runs
twice a round: the control says what this machine alone adds.

The own cost of each engine is what a step of a model without arithmetic takes longer than in the bare loop: the least of all
rounds, since other work only ever adds time. It tells what the ratios cannot on a busy machine.

Then: a checkpoint generation with its hash against `torch.save` alone, and the own cost per step of the callbacks that
count and watch. Exit code 1 where an interval lies wholly beyond its limit, by processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else threads that wait for a core count as working

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from benchmarks.adapter_overhead import BATCH, LENGTH, ROWS, Decoder, median_interval
from utils.adapters.model_adapter import adapt
from utils.tokenization.packing import PackedBlocks
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

RATE, CLIP, DECAY = 5e-4, 1.0, 0.01
LIMITS = {"loop": 0.97, "transformers": 1.0, "lightning": 1.0}
"""Least throughput of our trainer as a multiple of each other's."""
CHECKPOINT_LIMIT = 1.5
"""Largest time of a checkpoint generation as a multiple of `torch.save`."""
NAMES = {
    "ours": "our Trainer",
    "loop": "bare loop",
    "control": "bare loop again",
    "lightning": "plain Lightning",
    "transformers": "transformers.Trainer",
}


class Small(nn.Module):
    """Hardly any arithmetic, so that what remains is the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(ROWS, 4)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, V)."""
        return F.linear(self.tokens(input_ids), self.tokens.weight)


@dataclass(frozen=True)
class Task:
    """What is trained in a turn: a model, (batch, length) tokens a step, steps, and how many of them do not count."""

    model: Callable[[], nn.Module]
    batch: int
    length: int
    steps: int
    warm_up: int


WHOLE, OWN = Task(Decoder, BATCH, LENGTH, 14, 4), Task(Small, 2, 8, 150, 30)


class Stamped(PackedBlocks):
    """Blocks that remember when each batch was asked for, by the clock and by processor time."""

    def __init__(self, task: Task = WHOLE) -> None:
        shape = (task.steps * task.batch, task.length)
        super().__init__(np.random.default_rng(0).integers(0, ROWS, shape).astype(np.uint16))
        self.job = task
        self.stamps: list[tuple[float, float]] = []

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        self.stamps.append((time.perf_counter(), time.process_time()))
        return super().__getitems__(indices)

    def per_step(self) -> tuple[float, float]:
        """Seconds per step after the warm-up, by both clocks."""
        warm_up = self.job.warm_up
        (wall, cpu), (end_wall, end_cpu), steps = self.stamps[warm_up], self.stamps[-1], len(self.stamps) - 1 - warm_up
        return (end_wall - wall) / steps, (end_cpu - cpu) / steps


class WithLoss(nn.Module):
    """The model with a loss of its own, as the other engines want it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder = task.model()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, T) → loss and logits (B, T, V)."""
        logits = self.decoder(input_ids)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, ROWS), labels[:, 1:].reshape(-1))
        return {"loss": loss, "logits": logits}


class PlainModule(pl.LightningModule):
    """What a person writes around a model for Lightning."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.model = task, WithLoss(task)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """The loss, logged."""
        loss = self.model(**batch)["loss"]
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW and a schedule per step."""
        optimizer, schedule = optimizer_of(self, self.task)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def optimizer_of(model: nn.Module, task: Task) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a schedule, the same for every engine but ours, whose own does as much."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * step / task.steps)


def loader_of(blocks: Stamped) -> torch.utils.data.DataLoader[Any]:
    """Shuffled batches."""
    return torch.utils.data.DataLoader(
        blocks, batch_size=blocks.job.batch, shuffle=True, collate_fn=lambda batch: batch
    )


def by_loop(blocks: Stamped, folder: Path) -> None:
    """Train as a person writes it down."""
    model = WithLoss(blocks.job).train()
    optimizer, schedule = optimizer_of(model, blocks.job)
    for batch in loader_of(blocks):
        optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()


def by_ours(blocks: Stamped, folder: Path) -> None:
    """Train with `Trainer` and its callbacks."""
    torch.manual_seed(0)
    task = blocks.job
    settings = TrainingConfig(learning_rate=RATE, weight_decay=DECAY, batch_size=task.batch, max_steps=task.steps)
    Trainer(adapt(task.model()), None, settings, workspace=folder, resume="never").train(blocks)


def by_lightning(blocks: Stamped, folder: Path) -> None:
    """Train with Lightning as it comes: progress bar, summary, logger, checkpoints."""
    engine = pl.Trainer(
        max_steps=blocks.job.steps, gradient_clip_val=CLIP, accelerator="cpu", default_root_dir=str(folder)
    )
    engine.fit(PlainModule(blocks.job), loader_of(blocks))


def by_transformers(blocks: Stamped, folder: Path) -> None:
    """Train with `transformers.Trainer`, which reports to nobody and saves nothing."""
    model, task = WithLoss(blocks.job), blocks.job
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=task.steps,
        per_device_train_batch_size=task.batch,
        max_grad_norm=CLIP,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    transformers.Trainer(
        model, arguments, train_dataset=blocks, data_collator=lambda batch: batch, optimizers=optimizer_of(model, task)
    ).train()


TURNS: dict[str, Callable[[Stamped, Path], None]] = {
    "ours": by_ours,
    "loop": by_loop,
    "lightning": by_lightning,
    "transformers": by_transformers,
    "control": by_loop,
}


@dataclass
class Seconds:
    """Seconds per step of each engine, one per round, by one clock."""

    of: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TURNS})

    def throughput(self, other: str, ours: str = "ours") -> list[float]:
        """Throughput of `ours` as a multiple of the other's, round by round."""
        return [theirs / mine for theirs, mine in zip(self.of[other], self.of[ours])]


def turn(name: str, task: Task = WHOLE) -> tuple[float, float]:
    """One short run, silent; seconds per step by the clock and by processor time."""
    blocks = Stamped(task)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        TURNS[name](blocks, Path(folder))
    return blocks.per_step()


def compare(rounds: int, progress: Callable[[str], None], task: Task = WHOLE) -> tuple[Seconds, Seconds]:
    """All engines in turns; the order rotates from round to round."""
    wall, cpu = Seconds(), Seconds()
    names = list(TURNS)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            by_wall, by_cpu = turn(name, task)
            wall.of[name].append(by_wall)
            cpu.of[name].append(by_cpu)
        progress(f"round {number + 1} of {rounds}")
    return wall, cpu


def checkpoint_ratios(parameters: int, folder: Path, pairs: int) -> tuple[list[float], float]:
    """Time of a generation (written, hashed, flushed to the disk, with manifest) over `torch.save` of the same state.

    Returns:
        One ratio per pair, each first in every other one, and the median seconds of `torch.save`.
    """
    size = max(1, parameters // 1024)
    state = {name: {str(i): torch.randn(size, 32) for i in range(32)} for name in ("weights", "first", "second")}
    store, ratios, alone = CheckpointStore(folder / "store", "benchmark"), [], []

    def generation(step: int) -> None:
        path = store.next_path(step)
        store.write(state, path)
        store.commit(path, step)

    for number in range(pairs + 1):
        seconds = {}
        for which in (("save", "store"), ("store", "save"))[number % 2]:
            begun = time.perf_counter()
            if which == "save":
                torch.save(state, folder / "alone.ckpt")
            else:
                generation(number)
            seconds[which] = time.perf_counter() - begun
        if number:  # the first pair warms up
            ratios.append(seconds["store"] / seconds["save"])
            alone.append(seconds["save"])
    return ratios, statistics.median(alone)


def callback_costs(steps: int) -> dict[str, float]:
    """Seconds per step that callbacks take themselves, measured around their hooks on a real model after a backward pass."""
    from utils.adapters.model_adapter import UniversalModelAdapter
    from utils.training.engine.gradient_accumulator import GradientAccumulator
    from utils.training.engine.gradient_monitor import GradientMonitor

    lit = UniversalModelAdapter(adapt(Decoder()))
    batch = Stamped().__getitems__(range(BATCH))
    lit.adapted(batch["input_ids"], labels=batch["labels"]).loss.backward()
    engine = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    found = {}
    for callback in (GradientMonitor(), GradientAccumulator()):
        callback.on_train_start(engine, lit)
        callback.on_train_epoch_start(engine, lit)
        times = []
        for step in range(steps):
            begun = time.process_time()
            callback.on_train_batch_start(engine, lit, batch, step)
            callback.on_before_optimizer_step(engine, lit, None)  # type: ignore[arg-type]
            callback.on_train_batch_end(engine, lit, {}, batch, step)
            times.append(time.process_time() - begun)
        found[type(callback).__name__] = statistics.fmean(times)
    return found


def _verdict(low: float, high: float, limit: float) -> str:
    """What an interval says about a lower limit."""
    return "BELOW" if high < limit else "holds" if low >= limit else "the interval does not decide"


def told(values: list[float]) -> str:
    """Median, interval and number as text."""
    low, high = median_interval(values)
    return f"{statistics.median(values):.3f} (95% {low:.3f} to {high:.3f}, {len(values)} rounds)"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description="Throughput of the training engine beside others.")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each engine (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in ("pytorch_lightning", "lightning_fabric", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a command: it speaks

    for name in list(TURNS)[:-1]:  # warm-up: imports and caches
        turn(name)
    wall, cpu = compare(max(3, options.rounds), lambda note: print(note, file=sys.stderr, flush=True))  # noqa: T201
    say(f"{BATCH} × {LENGTH} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in TURNS:
        by_wall, by_cpu = statistics.median(wall.of[name]), statistics.median(cpu.of[name])
        say(f"{NAMES[name]:<22} {1000 * by_wall:6.1f} ms a step, {1000 * by_cpu:6.1f} ms of processors")
    kept = True
    for other in (*LIMITS, "control"):
        ours = "loop" if other == "control" else "ours"
        ratios = cpu.throughput(other, ours)
        low, high = median_interval(ratios)
        limit = LIMITS.get(other)
        verdict = "" if limit is None else f": {_verdict(low, high, limit)} {limit}"
        kept = kept and (limit is None or high >= limit)
        say(f"throughput of {NAMES[ours]} over {NAMES[other]}{verdict}")
        say(f"  by processor time {told(ratios)}; by the clock {told(wall.throughput(other, ours))}")
    step = statistics.median(cpu.of["loop"])
    _, own = compare(max(3, options.rounds), lambda note: None, OWN)
    least = {name: min(values) for name, values in own.of.items()}
    for name in ("ours", "lightning", "transformers"):
        more = least[name] - least["loop"]
        say(f"own cost of {NAMES[name]}: {more * 1e6:.0f} µs a step more than the loop, {more / step:.2%} of its step")
    for name, seconds in callback_costs(200).items():
        say(f"{name}: {seconds * 1e6:.0f} µs a step, {seconds / step:.2%} of one of the bare loop")
    for parameters in (2_000_000, 20_000_000):
        with tempfile.TemporaryDirectory() as folder:
            ratios, alone = checkpoint_ratios(parameters, Path(folder), 9)
        low, high = median_interval(ratios)
        kept = kept and low <= CHECKPOINT_LIMIT
        verdict = "ABOVE" if low > CHECKPOINT_LIMIT else "holds"
        say(
            f"checkpoint generation over torch.save, {parameters:,} parameters ({alone * 1000:.0f} ms): {verdict} {CHECKPOINT_LIMIT}"
        )
        say(f"  {told(ratios)}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
