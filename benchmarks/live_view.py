"""What the wizard's live view costs the steps of a training: `python benchmarks/live_view.py`.

One training, in which the view (progress line, loss curve, sample texts, as real widgets) is on and off in turns of some seconds.
The figure is the median over all pairs of turns of the ratio of whole seconds per step, with its 95% interval. Exit code 1 where
the interval lies wholly above the limit, by processor time or by the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from anywhere, as a file

import numpy as np
import torch

from benchmarks.adapter_overhead import BATCH, LENGTH, ROWS, Decoder, within
from utils.adapters.model_adapter import adapt
from utils.errors import TrainingStopped
from utils.progress import Progress
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.tokenization.packing import PackedBlocks
from utils.training.dataset_utilities import python_docs
from utils.training.engine.trainer import Trainer
from utils.training.live_plot import LivePlot
from utils.training.training_config import TrainingConfig
from utils.ui.decisions.live import PICTURE_SECONDS, Live
from utils.ui.decisions.sample_hooks import SampleHooks
from utils.ui.steps.results import LivePanel

LIMIT = 1.03
"""Largest time of a step with the view, as a multiple of a step without."""
SECONDS = 6.0
"""Of a turn: long enough for a sample text, several curves and a dozen progress lines."""


class Turns:
    """Switches the view on and off by the clock, at whole steps, and keeps seconds per step of each turn."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.on = seconds, True
        self.found: list[tuple[bool, float, float]] = []  # (on, by the clock, by processor time)
        self._begun: tuple[float, float] | None = None
        self._steps, self._off = 0, 0.0

    def clock(self) -> float:
        """Seconds of the turns with the view, which is all that the view must know: what it may draw now and then, it may not
        draw twice as often because it slept between.
        """
        now = time.perf_counter()
        return (now if self.on or self._begun is None else self._begun[0]) - self._off

    def step(self) -> None:
        """An optimizer step is done."""
        now = (time.perf_counter(), time.process_time())
        if self._begun is None:
            self._begun = now
            return
        self._steps += 1
        if now[0] - self._begun[0] >= self.seconds:
            clock, processor = ((now[part] - self._begun[part]) / self._steps for part in (0, 1))
            self.found.append((self.on, clock, processor))
            self._off += 0.0 if self.on else now[0] - self._begun[0]
            self._begun, self._steps, self.on = now, 0, not self.on

    def ratios(self, part: int) -> list[float]:
        """With the view by without, of turns beside each other; the first pair warms up."""
        turns = self.found[2:]
        return [on[part] / off[part] for on, off in zip(turns[0::2], turns[1::2])]


class SwitchedHooks(SampleHooks):
    """The wizard's hooks; they sleep while the view is off."""

    def __init__(self, live: Live, turns: Turns) -> None:
        super().__init__(live, "The", lambda name: None, turns.clock)
        self._turns = turns

    def on_step_end(self, step: int, loss: float | None) -> None:
        """Count the step, and write where the view is on."""
        self._turns.step()
        if self._turns.on:
            super().on_step_end(step, loss)


class SwitchedPlot(LivePlot):
    """The wizard's plot; it wants nothing while the view is off."""

    def __init__(self, live: Live, turns: Turns) -> None:
        super().__init__(live, turns.clock, PICTURE_SECONDS)
        self._turns = turns

    @property
    def wanted(self) -> bool:
        """Whether the next update would be drawn."""
        return self._turns.on and super().wanted


def train(turns: Turns, pairs: int, folder: Path) -> None:
    """Train with the page's own widgets listening, until enough turns are kept."""
    torch.manual_seed(0)
    live = Live()
    run = SimpleNamespace(live=live, interrupted=False, finished=False, form=SimpleNamespace(name="run"))
    LivePanel(SimpleNamespace(setup=SimpleNamespace(results=run), busy=True))  # type: ignore[arg-type] # all it asks for
    blocks = PackedBlocks(np.random.default_rng(0).integers(0, 256, (4096, LENGTH)))
    progress = Progress("Training", unit="steps", view=live)
    config = TrainingConfig(batch_size=BATCH, max_steps=10**6, save_every_n_minutes=0.0, save_every_n_epochs=10**6)
    trainer = Trainer(
        adapt(Decoder(), {"vocab_size": ROWS}),
        None,
        config,
        tokenizer=FastBPETrainer.train_on_dataset([python_docs()[:50_000]], 300),
        workspace=folder,
        progress=lambda done, total, note="": progress(done, total, note) if turns.on else None,
        resume="never",
        hooks=SwitchedHooks(live, turns),
        stop=lambda: len(turns.found) >= 2 * (pairs + 1),
        plot=SwitchedPlot(live, turns),
    )
    with contextlib.suppress(TrainingStopped):
        trainer.train(blocks)


def main(arguments: list[str] | None = None) -> int:
    """Train, and judge."""
    parser = argparse.ArgumentParser(description="What the wizard's live view costs the steps of a training.")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of turns (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    turns = Turns(SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        train(turns, options.pairs, Path(folder))
    parts = {"clock": turns.ratios(1), "processor": turns.ratios(2)}
    held = [within(f"step with the live view / without, {name} time", ratios, LIMIT) for name, ratios in parts.items()]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
