"""What a run logs to W&B and TensorBoard: every step once with all of its values, through resume, failure and a second fit."""

from __future__ import annotations

import dataclasses
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from tests.training.tiny import make_tiny
from tests.training.wandb_files import ended, history, offline_runs, run_of
from utils.tokenization.batch_order import fit_window
from utils.tokenization.loaders import DataLoaderFactory
from utils.tokenization.packing import PackedBlocks
from utils.training.engine import resources as resources_module
from utils.training.engine.loop import LossesPerByte, TrainingLoop, ValidationLoop
from utils.training.engine.loss import LossStrategyRegistry
from utils.training.engine.module import TrainingModule
from utils.training.engine.resources import ResourceMonitor, memory_in_use
from utils.training.engine.tracking import TrackingCallback
from utils.training.tracking import Destination
from utils.training.training_config import TrainingConfig

BLOCKS = np.random.default_rng(0).integers(0, 300, (12, 16))


class Recorder:
    """A sink that keeps rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.ends: list[bool] = []

    def log(self, rows) -> None:
        assert not self.ends
        self.rows.extend(dict(row) for row in rows)

    def finish(self, succeeded: bool = True) -> None:
        self.ends.append(succeeded)


@dataclasses.dataclass(frozen=True)
class Recording(Destination):
    """Opens recorders instead of clients."""

    opened: list[tuple[int, Recorder]] = dataclasses.field(default_factory=list)

    def open(self, first_step):
        self.opened.append((first_step, Recorder()))
        return [self.opened[-1][1]]


class Stop(pl.Callback):
    """Ends the run in the middle of things."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise self.error


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    handler = signal.getsignal(signal.SIGINT)  # Lightning ignores the signal after an interrupt
    yield
    signal.signal(signal.SIGINT, handler)


class Run:
    """Loops, callbacks and a plain Lightning trainer over twelve blocks: three steps an epoch."""

    def __init__(self, tmp_path, destination, steps=6, extra=(), norms=None, clock=None) -> None:
        self.training, self.validation = TrainingLoop(steps), ValidationLoop()
        timed = {} if clock is None else {"clock": clock}
        self.resources = ResourceMonitor(64, tmp_path / "resources.csv", memory=lambda device: 2**30, **timed)
        bits = LossesPerByte(lambda loss: loss / 2, lambda loss: loss / 4)
        self.tracking = TrackingCallback(
            destination, self.training, self.validation, bits, self.resources, norms and norms(self), **timed
        )
        self.trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=steps // 3,
            callbacks=[self.training, self.validation, self.resources, self.tracking, *extra],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=str(tmp_path),
        )
        blocks = PackedBlocks(BLOCKS)
        factory = DataLoaderFactory(0)
        self.train, self.val = factory.train(blocks, fit_window(12, 4, 1)), factory.validation(blocks, 4)
        config = TrainingConfig(learning_rate=1e-2)
        self.lit = TrainingModule(make_tiny(), config, steps, LossStrategyRegistry.for_task("lm"), None)

    def fit(self, validate_first=True, **arguments):
        if validate_first:
            self.trainer.validate(self.lit, self.val, verbose=False)
        self.trainer.fit(self.lit, self.train, self.val, **arguments)
        return self


def test_every_step_is_one_row_with_all_that_is_known_of_it(tmp_path):
    destination = Recording(tmp_path, "id")
    run = Run(tmp_path, destination, norms=lambda run: lambda: [float(i) for i in range(len(run.training.step_losses))])
    run.fit()
    [(first, sink)] = destination.opened
    assert first == 1 and sink.ends == [True]
    assert [row["step"] for row in sink.rows] == [0, 1, 2, 3, 4, 5, 6]
    assert {"step", "val/loss", "val/perplexity", "val/bits_per_byte"} <= set(sink.rows[0])
    assert not any(name.startswith("train") for name in sink.rows[0])
    assert set(sink.rows[1]) == {"step", "train/loss", "train/bits_per_byte", "learning_rate", "gradient_norm"}
    assert {"val/loss", "tokens_per_second", "memory_gib"} <= set(sink.rows[6]) and "val/loss" in sink.rows[3]
    for row in sink.rows[1:]:
        step = int(row["step"])
        assert row["train/loss"] == run.training.step_losses[step - 1] == 2 * row["train/bits_per_byte"]
        assert row["gradient_norm"] == step - 1
    assert sink.rows[3]["val/loss"] == run.validation.history[0].loss
    assert sink.rows[6]["memory_gib"] == 1.0


def test_rows_come_in_groups_and_in_order(tmp_path):
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    destination = Recording(tmp_path, "id")
    Run(tmp_path, destination, clock=clock).fit()
    steps = [row["step"] for row in destination.opened[0][1].rows]
    assert steps == sorted(set(steps)) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_a_run_that_fails_logs_what_it_read_and_is_ended_as_failed(tmp_path, error):
    destination = Recording(tmp_path, "id")
    run = Run(tmp_path, destination, extra=[Stop(5, error)])
    with pytest.raises((RuntimeError, SystemExit)):
        run.fit()
    [(_, sink)] = destination.opened
    assert [row["step"] for row in sink.rows] == [0, 1, 2, 3, 4, 5]
    assert sink.ends == [False]


def test_a_second_fit_logs_into_a_run_of_its_own(tmp_path):
    first, second = Recording(tmp_path, "one"), Recording(tmp_path, "two")
    Run(tmp_path, first, steps=3).fit()
    Run(tmp_path, second, steps=3).fit()
    assert [len(item.opened[0][1].rows) for item in (first, second)] == [4, 4]


def test_a_resumed_run_goes_on_after_the_last_logged_step_of_its_checkpoint(tmp_path):
    begun = Recording(tmp_path, "id")
    run = Run(tmp_path, begun, steps=3).fit()
    run.trainer.save_checkpoint(tmp_path / "c.ckpt")
    resumed = Recording(tmp_path, "id")
    again = Run(tmp_path, resumed).fit(validate_first=False, ckpt_path=str(tmp_path / "c.ckpt"), weights_only=True)
    [(first, sink)] = resumed.opened
    assert first == 4 and [row["step"] for row in sink.rows] == [4, 5, 6]
    assert [item.step for item in again.resources.samples] == [3, 6]
    assert again.resources.samples[1].seconds > again.resources.samples[0].seconds


def test_w_and_b_offline_holds_the_run_and_a_resumed_one_has_its_id(tmp_path):
    where = Destination(tmp_path, "f00d", "project", True, "my run", "notes", {"learning_rate": 1e-2})
    run = Run(tmp_path, where, steps=3).fit()
    run.trainer.save_checkpoint(tmp_path / "c.ckpt")
    Run(tmp_path, where).fit(validate_first=False, ckpt_path=str(tmp_path / "c.ckpt"), weights_only=True)
    one, two = offline_runs(tmp_path)
    assert [row["step"] for row in history(one)] == [0, 1, 2, 3]
    assert [row["step"] for row in history(two)] == [4, 5, 6]
    assert run_of(one).run_id == run_of(two).run_id == "f00d"
    assert (run_of(one).display_name, run_of(one).notes, run_of(one).project) == ("my run", "notes", "project")
    assert ended(one) == ended(two) == 0
    assert list((tmp_path / "tensorboard").iterdir())


def test_time_of_validations_is_left_out_of_the_speed():
    now = [0.0]
    monitor = ResourceMonitor(100, clock=lambda: now[0], memory=lambda device: None)
    trainer = type("T", (), {"global_step": 0})()
    module = type("M", (), {"device": torch.device("cpu")})()
    monitor.on_train_start(trainer, module)
    now[0], trainer.global_step = 4.0, 8
    monitor.on_validation_start(trainer, module)
    now[0] = 104.0
    monitor.on_validation_end(trainer, module)
    monitor.on_train_end(trainer, module)
    assert [(item.step, item.seconds, item.tokens_per_second) for item in monitor.samples] == [(8, 4.0, 200.0)]


def test_samples_stay_few_however_long_a_run_is(monkeypatch):
    monkeypatch.setattr(resources_module, "MOST_SAMPLES", 8)
    now = [0.0]
    monitor = ResourceMonitor(1, clock=lambda: now[0], memory=lambda device: 1)
    trainer = type("T", (), {"global_step": 0})()
    module = type("M", (), {"device": torch.device("cpu")})()
    monitor.on_train_start(trainer, module)
    for step in range(1, 1001):
        now[0], trainer.global_step = 5.0 * step, step
        monitor.on_train_batch_end(trainer, module, None, None, 0)
    steps = [item.step for item in monitor.samples]
    assert len(steps) < 8 and steps == sorted(steps) and steps[-1] > 700


def test_memory_of_this_process_is_plausible():
    assert memory_in_use(torch.device("cpu")) > 50 << 20
