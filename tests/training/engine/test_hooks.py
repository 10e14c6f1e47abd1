from __future__ import annotations

import logging

import numpy as np

from tests.training.tiny import make_tiny
from utils.training.engine.trainer import DefaultHooks, Trainer, TrainingHooks
from utils.training.training_config import TrainingConfig

BLOCKS = np.random.default_rng(0).integers(0, 300, (8, 16))


class Diary(TrainingHooks):
    def __init__(self):
        self.lines = []

    def on_training_start(self, run_name, total_steps, first_step):
        self.lines.append(("start", run_name, total_steps, first_step))

    def on_step_end(self, step, loss):
        self.lines.append(("step", step, loss))

    def on_validation_end(self, validation):
        self.lines.append(("validation", validation.step, validation.loss))

    def on_epoch_end(self, result):
        self.lines.append(("epoch", result.epoch, result.val_loss))

    def on_training_end(self, result):
        self.lines.append(("end", result["run_name"]))


def test_every_turn_is_told_once_and_in_order(tmp_path):
    diary = Diary()
    config = TrainingConfig(epochs=2, batch_size=2, gradient_accumulation_steps=2, run_name="r")
    result = Trainer(make_tiny(), None, config, workspace=tmp_path, hooks=diary).train(BLOCKS, BLOCKS[:3])
    losses, validated = result["step_loss_history"], result["val_loss_history"]
    assert diary.lines == [
        ("start", "r", 4, 0),
        ("step", 1, losses[0]),
        ("step", 2, losses[1]),
        ("validation", 2, validated[0]),
        ("epoch", 0, validated[0]),
        ("step", 3, losses[2]),
        ("step", 4, losses[3]),
        ("validation", 4, validated[1]),
        ("epoch", 1, validated[1]),
        ("end", "r"),
    ]


def test_the_default_writes_a_line_per_epoch(tmp_path, caplog):
    caplog.set_level(logging.INFO, "utils")
    config = TrainingConfig(epochs=2, batch_size=4, run_name="r")
    Trainer(make_tiny(), None, config, workspace=tmp_path, hooks=DefaultHooks()).train(BLOCKS, BLOCKS[:3])
    assert sum("ended at step" in line and "validation" in line for line in caplog.messages) == 2
