from __future__ import annotations

import itertools

import pytest
import pytorch_lightning as pl
import torch

from tests.training.tiny import make_tiny
from utils.adapters.model_adapter import UniversalModelAdapter
from utils.training.engine.gradient_accumulator import AccumulationStats, GradientAccumulator

LENGTHS = (5, 8, 3, 8, 6, 4, 7)
"""Real tokens in the second row of each micro-batch of two rows of 8."""


def batches():
    torch.manual_seed(1)
    made = []
    for length in LENGTHS:
        ids = torch.randint(300, (2, 8))
        labels = ids.clone()
        labels[1, length:] = -100
        made.append({"input_ids": ids, "labels": labels, "loss_share": torch.tensor(1.0)})
    return made


def fit(tmp_path, *callbacks, accumulation=1, epochs=1, ckpt_path=None):
    engine = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=accumulation,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    engine.fit(UniversalModelAdapter(make_tiny()), loader, ckpt_path=ckpt_path, weights_only=True)
    return engine


@pytest.mark.parametrize(
    ("accumulation", "steps", "window_samples", "window"),
    [(1, 7, 2, (7,)), (2, 4, 2, (7,)), (3, 3, 2, (7,)), (4, 2, 6, (6, 4, 7)), (7, 1, 14, LENGTHS), (9, 1, 14, LENGTHS)],
)
def test_windows_are_counted_with_their_labels(tmp_path, accumulation, steps, window_samples, window):
    accumulator = GradientAccumulator()
    engine = fit(tmp_path, accumulator, accumulation=accumulation)
    stats = accumulator.stats
    assert (stats.micro_batches, stats.optimizer_steps, stats.pending) == (7, steps, 0)
    assert stats.optimizer_steps == engine.global_step
    assert stats.accumulation == accumulation
    assert (stats.samples, stats.effective_batch) == (14, window_samples)
    assert stats.labels == sum(7 + length - 1 for length in LENGTHS)  # the first token of a row is never predicted
    assert stats.window_labels == sum(7 + length - 1 for length in window)


class Look(pl.Callback):
    """Asks in every hook that callbacks log in."""

    def __init__(self, accumulator):
        self.accumulator, self.seen = accumulator, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((self.accumulator.stepped, trainer.global_step))


@pytest.mark.parametrize("first", [True, False])
def test_a_real_step_is_told_to_callbacks_in_any_order(tmp_path, first):
    accumulator = GradientAccumulator()
    look = Look(accumulator)
    fit(tmp_path, *((accumulator, look) if first else (look, accumulator)), accumulation=3, epochs=2)
    assert [stepped for stepped, _ in look.seen] == 2 * [False, False, True, False, False, True, True]
    steps = [0, *(step for _, step in look.seen)]
    assert [stepped for stepped, _ in look.seen] == [
        a != b for a, b in itertools.pairwise(steps)
    ]  # what Lightning counts


def test_pending_micro_batches_are_told_inside_a_window(tmp_path):
    accumulator, pending = GradientAccumulator(), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, *arguments):
            pending.append(accumulator.stats.pending)

    fit(tmp_path, accumulator, Watch(), accumulation=4)
    assert pending == [1, 2, 3, 0, 1, 2, 0]


def test_counts_go_on_in_a_resumed_run(tmp_path):
    first, whole, second = GradientAccumulator(), GradientAccumulator(), GradientAccumulator()
    fit(tmp_path, whole, accumulation=3, epochs=2)
    fit(tmp_path, first, accumulation=3, epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    engine = fit(tmp_path, second, accumulation=3, epochs=2, ckpt_path=str(tmp_path / "a.ckpt"))
    assert second.stats == whole.stats and second.stats.optimizer_steps == engine.global_step == 6


def test_reading_happens_in_groups(tmp_path, monkeypatch):
    """Reading a count makes a GPU wait: 7 steps must not read once."""
    accumulator, reads = GradientAccumulator(), []
    monkeypatch.setattr(accumulator, "_read", lambda: reads.append(1))
    fit(tmp_path, accumulator)
    assert reads == []


def test_the_summary_names_what_a_step_averages_over():
    text = AccumulationStats(12, 3, 4, 0, 24, 180, 8, 60).summary()
    assert "4 per step, 0 pending" in text and "8 samples, 60 labels" in text
