"""What the engine costs: `python benchmarks/training_throughput.py`.

A decoder of two million parameters trains at 8 × 128 tokens on two threads: by a bare PyTorch loop, by our `Trainer`, by a
plain `pytorch_lightning.Trainer` with its default callbacks, and by `transformers.Trainer`. Each has a process of its own;
they go in lock step, one step of one engine at a time, in rotating order, while the others wait for their turn. A step lasts
from one request for a batch to the next, so that setting up and ending a run do not count. One round holds a step of each
and gives one ratio each; figures are medians over all rounds with their 95% intervals, by the clock and by processor time.
The bare loop runs twice a round: the control says what this machine alone adds.

Each engine has the AdamW that it comes with: loop and plain Lightning what `torch.optim.AdamW` makes without being asked,
`transformers.Trainer` and ours the one of a single kernel. A third loop, which asks for that one too, says what it is worth.

The own cost of each engine is what a step of a model without arithmetic takes longer than in the bare loop: the least of all
rounds, since other work only ever adds time.

Then: a checkpoint generation with its hash against `torch.save` alone, which leaves the bytes in memory, and against
`torch.save` with the fsync that brings them to the disk; and the own cost per step of the callbacks that count and watch.
Exit code 1 where an interval lies wholly beyond its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

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
    "fused": "bare loop, fused AdamW",
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
    """What is trained: a model, (batch, length) tokens a step, and how many steps do not count."""

    model: Callable[[], nn.Module]
    batch: int
    length: int
    warm_up: int
    steps: int = 100_000  # nobody gets there: the process ends before


TASKS = {"whole": Task(Decoder, BATCH, LENGTH, 4), "own": Task(Small, 2, 8, 30)}


class Turns(PackedBlocks):
    """Blocks that hand out a batch only when it is this process's turn, and tell how long the step before took."""

    def __init__(self, task: Task, orders: TextIO, answers: TextIO) -> None:
        rows = 2_000 * task.batch  # one epoch is longer than any measurement
        super().__init__(np.random.default_rng(0).integers(0, ROWS, (rows, task.length)).astype(np.uint16))
        self.job, self._orders, self._answers = task, orders, answers
        self._begun: tuple[float, float] | None = None

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        if self._begun is not None:
            wall, cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
            self._answers.write(f"{wall} {cpu}\n")
            self._answers.flush()
        if not self._orders.readline():  # whoever asked is gone
            os._exit(0)
        self._begun = time.perf_counter(), time.process_time()
        return super().__getitems__(indices)


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


def optimizer_of(
    model: nn.Module, task: Task, fused: bool | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a schedule; `transformers` and ours make theirs themselves, which do as much."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY, fused=fused)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * step / task.steps)


def loader_of(blocks: Turns) -> torch.utils.data.DataLoader[Any]:
    """Shuffled batches."""
    return torch.utils.data.DataLoader(
        blocks, batch_size=blocks.job.batch, shuffle=True, collate_fn=lambda batch: batch
    )


def by_loop(blocks: Turns, folder: Path, fused: bool | None = None) -> None:
    """Train as a person writes it down."""
    model = WithLoss(blocks.job).train()
    optimizer, schedule = optimizer_of(model, blocks.job, fused)
    while True:
        for batch in loader_of(blocks):
            optimizer.zero_grad()
            loss = model(**batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()


def by_ours(blocks: Turns, folder: Path) -> None:
    """Train with `Trainer` and its callbacks."""
    torch.manual_seed(0)
    task = blocks.job
    settings = TrainingConfig(
        learning_rate=RATE, weight_decay=DECAY, batch_size=task.batch, max_steps=task.steps, epochs=task.steps
    )
    Trainer(adapt(task.model()), None, settings, workspace=folder, resume="never").train(blocks)


def by_lightning(blocks: Turns, folder: Path) -> None:
    """Train with Lightning as it comes: progress bar, summary, logger, checkpoints."""
    engine = pl.Trainer(
        max_steps=blocks.job.steps,
        max_epochs=-1,
        gradient_clip_val=CLIP,
        accelerator="cpu",
        default_root_dir=str(folder),
    )
    engine.fit(PlainModule(blocks.job), loader_of(blocks))


def by_transformers(blocks: Turns, folder: Path) -> None:
    """Train with `transformers.Trainer`, which reports to nobody and saves nothing."""
    model, task = WithLoss(blocks.job), blocks.job
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=task.steps,
        per_device_train_batch_size=task.batch,
        max_grad_norm=CLIP,
        learning_rate=RATE,
        adam_beta2=0.95,
        weight_decay=DECAY,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    transformers.Trainer(model, arguments, train_dataset=blocks, data_collator=lambda batch: batch).train()


TURNS: dict[str, Callable[[Turns, Path], None]] = {
    "ours": by_ours,
    "loop": by_loop,
    "lightning": by_lightning,
    "transformers": by_transformers,
    "control": by_loop,
    "fused": functools.partial(by_loop, fused=True),
}


@dataclass
class Seconds:
    """Seconds per step of each engine, one per round, by one clock."""

    of: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TURNS})

    def throughput(self, other: str, ours: str = "ours") -> list[float]:
        """Throughput of `ours` as a multiple of the other's, round by round."""
        return [theirs / mine for theirs, mine in zip(self.of[other], self.of[ours])]


def engine_process(name: str, task: str, threads: int) -> None:
    """What the process of one engine does: train, a step for each line of standard input."""
    torch.set_num_threads(threads)
    quiet()
    answers = os.fdopen(os.dup(1), "w")  # what engines print goes elsewhere
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TURNS[name](Turns(TASKS[task], sys.stdin, answers), Path(folder))


def compare(rounds: int, task: str, threads: int, progress: Callable[[str], None]) -> tuple[Seconds, Seconds]:
    """All engines in lock step; the order rotates from round to round."""
    wall, cpu, names = Seconds(), Seconds(), list(TURNS)
    with contextlib.ExitStack() as running:
        engines = {name: running.enter_context(_started(name, task, threads)) for name in names}
        warm_up = TASKS[task].warm_up
        for number in range(warm_up + rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                by_wall, by_cpu = _step(engines[name])
                if number >= warm_up:
                    wall.of[name].append(by_wall)
                    cpu.of[name].append(by_cpu)
            if (number + 1) % 10 == 0:
                progress(f"round {number + 1} of {warm_up + rounds}")
    return wall, cpu


@contextlib.contextmanager
def _started(name: str, task: str, threads: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--engine", name, "--task", task, "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _step(process: subprocess.Popen[str]) -> tuple[float, float]:
    """One step: seconds by the clock and by processor time."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    wall, cpu = process.stdout.readline().split()
    return float(wall), float(cpu)


def checkpoint_ratios(parameters: int, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a generation (written, hashed, flushed to the disk, with manifest), of `torch.save` of the same state, and
    of `torch.save` with fsync; one of each per round, in rotating order, the first round left out.
    """
    size = max(1, parameters // 1024)
    state = {name: {str(i): torch.randn(size, 32) for i in range(32)} for name in ("weights", "first", "second")}
    store, number = CheckpointStore(folder / "store", "benchmark"), 0

    def generation() -> None:
        path = store.next_path(number)
        store.write(state, path)
        store.commit(path, number)

    def durable() -> None:
        with open(folder / "durable.ckpt", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    ways = {"store": generation, "save": lambda: torch.save(state, folder / "alone.ckpt"), "durable": durable}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[number % 3 :] + list(ways)[: number % 3]:
            begun = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - begun)
    return {name: values[1:] for name, values in seconds.items()}


def quiet() -> None:
    """Only warnings of our own."""
    for name in ("pytorch_lightning", "lightning_fabric", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()


def callback_costs(steps: int) -> dict[str, float]:
    """Seconds per step that callbacks take themselves, measured around their hooks on a real model after a backward pass."""
    from utils.adapters.model_adapter import UniversalModelAdapter
    from utils.training.engine.gradient_accumulator import GradientAccumulator
    from utils.training.engine.gradient_monitor import GradientMonitor

    lit = UniversalModelAdapter(adapt(Decoder()))
    ids = torch.randint(0, ROWS, (BATCH, LENGTH))
    batch = {"input_ids": ids, "labels": ids}
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
    parser.add_argument("--rounds", type=int, default=80, help="steps of each engine (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--engine", choices=TURNS, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, default="whole", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.engine:
        engine_process(options.engine, options.task, options.threads)
        return 0
    torch.set_num_threads(options.threads)
    quiet()

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a command: it speaks

    def note(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    rounds = max(10, options.rounds)
    kept = _throughput(*compare(rounds, "whole", options.threads, note), say)
    _, own = compare(3 * rounds, "own", options.threads, note)
    least = {name: min(values) for name, values in own.of.items()}
    for name in ("ours", "lightning", "transformers"):
        say(f"own cost of {NAMES[name]}: {(least[name] - least['loop']) * 1e6:.0f} µs a step more than the loop")
    for name, seconds in callback_costs(200).items():
        say(f"{name}: {seconds * 1e6:.0f} µs a step")
    return 0 if _checkpoints(say) and kept else 1


def _throughput(wall: Seconds, cpu: Seconds, say: Callable[[str], None]) -> bool:
    """Tell the ratios; False where an interval lies wholly below its limit."""
    say(f"{BATCH} × {LENGTH} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in TURNS:
        by_wall, by_cpu = statistics.median(wall.of[name]), statistics.median(cpu.of[name])
        say(f"{NAMES[name]:<22} {1000 * by_wall:6.1f} ms a step, {1000 * by_cpu:6.1f} ms of processors")
    kept = True
    for other in (*LIMITS, "fused", "control"):
        ours = "loop" if other == "control" else "ours"
        ratios = wall.throughput(other, ours)
        low, high = median_interval(ratios)
        limit = LIMITS.get(other)
        verdict = "" if limit is None else f": {_verdict(low, high, limit)} {limit}"
        kept = kept and (limit is None or high >= limit)
        say(f"throughput of {NAMES[ours]} over {NAMES[other]}{verdict}")
        say(f"  by the clock {told(ratios)}; by processor time {told(cpu.throughput(other, ours))}")
    return kept


def _checkpoints(say: Callable[[str], None]) -> bool:
    """Tell what a checkpoint generation costs; False where it lies wholly above its limit."""
    kept = True
    for parameters in (2_000_000, 20_000_000):
        with tempfile.TemporaryDirectory() as folder:
            seconds = checkpoint_ratios(parameters, Path(folder), 12)
        alone = statistics.median(seconds["save"])
        for against in ("save", "durable"):
            ratios = [mine / theirs for mine, theirs in zip(seconds["store"], seconds[against])]
            low, _ = median_interval(ratios)
            kept = kept and (against == "durable" or low <= CHECKPOINT_LIMIT)
            verdict = "ABOVE" if low > CHECKPOINT_LIMIT else "holds"
            what = "torch.save" if against == "save" else "torch.save with fsync"
            say(f"checkpoint generation over {what}, {parameters:,} parameters ({alone * 1000:.0f} ms): {verdict}")
            say(f"  {told(ratios)}")
    return kept


if __name__ == "__main__":
    sys.exit(main())
