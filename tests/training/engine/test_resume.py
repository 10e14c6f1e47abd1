"""A run that is stopped and resumed equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from tests.training.tiny import make_tiny
from utils.tokenization.packing import PackedBlocks
from utils.training.engine import random_state
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

IDS = np.random.default_rng(0).integers(0, 300, 22 * 16 + 5).astype(np.uint16)
BLOCKS = PackedBlocks(IDS[: 22 * 16].reshape(22, 16), tail=IDS[22 * 16 :])
"""Rows differ; 5 windows of 2 × 2 and one of 2 and 1, in which the incomplete block may lie."""
VALIDATION = np.random.default_rng(1).integers(0, 300, (5, 16)).astype(np.uint16)
STEPS = 12
SCHEDULES = {
    "at the end of epochs": {},
    "every 2 steps": {"val_every_n_steps": 2},
    "never": None,
    "cut by max_steps": {"max_steps": 8, "val_every_n_steps": 3},
    "across epochs": {"val_every_n_steps": 5},
}


class Stop(Exception):
    """Stands for a machine that goes away."""


class StopBefore(pl.Callback):
    """Stops before the micro-batch that follows optimizer step `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Stop


class StoppingTrainer(Trainer):
    stop_before: int | None = None

    def _setup_engine(self, *arguments):
        engine = super()._setup_engine(*arguments)
        if self.stop_before is not None:
            engine.callbacks.insert(0, StopBefore(self.stop_before))
        return engine


def trainer(workspace: Path, schedule: str, seed: int = 0, **changes) -> StoppingTrainer:
    settings = dict(
        learning_rate=1e-2,
        batch_size=2,
        gradient_accumulation_steps=2,
        epochs=2,
        run_name="r",
        save_every_n_steps=1,
        **(SCHEDULES[schedule] or {}),
    )
    config = TrainingConfig(**{**settings, **changes})
    return StoppingTrainer(make_tiny(seed), None, config, workspace=workspace, resume="continue")


def outcome(workspace: Path, schedule: str, stops: tuple[int, ...] = (), **changes):
    """Losses, validations, learning rates, weights and optimizer state of a run that is stopped after the given steps."""
    validation = None if SCHEDULES[schedule] is None else VALIDATION
    for number, step in enumerate(stops):
        run = trainer(
            workspace, schedule, seed=number, **changes
        )  # other start weights: all must come from the checkpoint
        run.stop_before = step
        with pytest.raises(Stop):
            run.train(BLOCKS, validation)
    result = trainer(workspace, schedule, seed=0 if not stops else 99, **changes).train(BLOCKS, validation)
    checkpoint = torch.load(result["checkpoint_path"], weights_only=True)
    table = result["metrics_summary"].drop(columns="seconds")
    return result, {
        "losses": result["step_loss_history"],
        "validations": list(zip(result["val_steps"], result["val_loss_history"])),
        "rates": (result.run_folder / "metrics.csv").read_text(),
        "epochs": table.to_csv(),
        "weights": {k: v.numpy().tobytes() for k, v in result.model.state_dict().items()},
        "optimizer": [
            {k: v.numpy().tobytes() for k, v in slot.items()}
            for slot in checkpoint["optimizer_states"][0]["state"].values()
        ],
    }


@functools.cache
def uninterrupted(workspace: Path, schedule: str):
    return outcome(workspace / schedule, schedule)[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted")


STOPS = {
    "at the end of epochs": range(1, STEPS),
    "every 2 steps": range(1, STEPS),
    "never": (2, 6, 11),
    "cut by max_steps": (1, 3, 5, 6, 7),
    "across epochs": (4, 5, 6, 9, 10),
}


@pytest.mark.parametrize(("schedule", "stop"), [(name, stop) for name, stops in STOPS.items() for stop in stops])
def test_a_run_stopped_after_any_step_resumes_exactly(tmp_path, base, schedule, stop):
    result, got = outcome(tmp_path, schedule, (stop,))
    assert result["resumed_from_step"] == stop
    expected = uninterrupted(base, schedule)
    for name in expected:
        assert got[name] == expected[name], name
    assert len(set(got["losses"])) == len(got["losses"])  # equal losses would hide a wrong order


@pytest.mark.parametrize(("every", "stops", "resumed"), [(3, (5, 8), 6), (4, (5, 9), 8)])
def test_steps_since_the_last_save_are_repeated_exactly(tmp_path, base, every, stops, resumed):
    result, got = outcome(tmp_path, "every 2 steps", stops, save_every_n_steps=every)
    assert result["resumed_from_step"] == resumed
    assert got == uninterrupted(base, "every 2 steps")


def test_a_chain_of_stops_resumes_exactly(tmp_path, base):
    _, got = outcome(tmp_path, "at the end of epochs", tuple(range(1, STEPS)))
    assert got == uninterrupted(base, "at the end of epochs")


def test_a_finished_run_is_returned_as_it_was(tmp_path, base):
    _, expected = outcome(tmp_path, "cut by max_steps")
    again, got = outcome(tmp_path, "cut by max_steps")
    assert got == expected
    assert again["resumed_from_step"] == 8


@pytest.mark.parametrize("damage", ["flip", "cut", "no manifest", "torn manifest"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, base, damage):
    run = trainer(tmp_path, "at the end of epochs")
    run.stop_before = 4
    with pytest.raises(Stop):
        run.train(BLOCKS, VALIDATION)
    newest = sorted((tmp_path / "r" / "checkpoints").glob("*.ckpt"))[-1]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    manifest = newest.with_suffix(".json")
    {
        "flip": lambda: newest.write_bytes(raw),
        "cut": lambda: newest.write_bytes(raw[:-100]),
        "no manifest": manifest.unlink,
        "torn manifest": lambda: manifest.write_text(manifest.read_text()[:40]),
    }[damage]()
    result, got = outcome(tmp_path, "at the end of epochs")
    assert result["resumed_from_step"] == 3
    assert got == uninterrupted(base, "at the end of epochs")


def test_random_states_come_back_as_they_were():
    def draw():
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)]  # noqa: NPY002

    random.gauss(0, 1)  # keeps a second value for the next call, which is part of the state
    state = random_state.capture()
    drawn = draw()
    random_state.restore(state)
    assert draw() == drawn


KILLED = """
import sys, os, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tests.training.engine.test_resume import *
class Die(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == int(sys.argv[3]):
            os.kill(os.getpid(), 9)
class Dying(StoppingTrainer):
    def _setup_engine(self, *arguments):
        engine = super()._setup_engine(*arguments)
        engine.callbacks.insert(0, Die())
        return engine
run = trainer(Path(sys.argv[2]), "at the end of epochs")
run.__class__ = Dying
run.train(BLOCKS, VALIDATION)
"""


@pytest.mark.slow
def test_a_killed_process_resumes_exactly_in_a_new_one(tmp_path, base):
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, root, str(tmp_path), "7"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == -9, done.stderr
    result, got = outcome(tmp_path, "at the end of epochs")
    assert result["resumed_from_step"] == 7
    assert got == uninterrupted(base, "at the end of epochs")
