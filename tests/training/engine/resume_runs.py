"""A small run in which everything that could go wrong on resume takes part, and ways to stop it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from tests.training.tiny import make_tiny
from utils.tokenization.packing import PackedBlocks
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

IDS = np.random.default_rng(0).integers(0, 300, 22 * 16 + 5).astype(np.uint16)
BLOCKS = PackedBlocks(IDS[: 22 * 16].reshape(22, 16), tail=IDS[22 * 16 :])
"""Rows differ; 5 windows of 2 × 2 and one of 2 and 1, in which the incomplete block may lie."""

VALIDATION = np.random.default_rng(1).integers(0, 300, (5, 16)).astype(np.uint16)

THREE_EPOCHS = {"epochs": 3, "val_every_n_steps": 4}
"""18 steps with dropout, shuffling, cosine schedule and accumulation; validations fall into epochs and not at their ends."""

THREE_EPOCHS_STEPS = 18


class StopError(Exception):
    """Stands for a machine that goes away."""


class StopBefore(pl.Callback):
    """Acts before the micro-batch that follows optimizer step `step`."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.act = step, act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.step = -1
            self.act()


def go_away() -> None:
    raise StopError


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class StoppingTrainer(Trainer):
    stop_before: int | None = None
    act: Callable[[], None] = staticmethod(go_away)

    def _setup_engine(self, *arguments):
        engine = super()._setup_engine(*arguments)
        if self.stop_before is not None:
            engine.callbacks.insert(0, StopBefore(self.stop_before, self.act))
        return engine


def trainer(workspace: Path, seed: int = 0, **changes: Any) -> StoppingTrainer:
    """A trainer; the seed is that of the start weights."""
    settings = {
        "learning_rate": 1e-2,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "run_name": "r",
        "save_every_n_steps": 1,
    }
    config = TrainingConfig(**{**settings, **changes})
    return StoppingTrainer(make_tiny(seed), None, config, workspace=workspace, resume="continue")


def stop(workspace: Path, step: int, seed: int, validation: Any, **changes: Any) -> None:
    """Train until a step is done, and stop there."""
    run = trainer(workspace, seed, **changes)
    run.stop_before = step
    try:
        run.train(BLOCKS, validation)
    except StopError:
        return
    raise AssertionError(f"the run did not stop at step {step}")


def outcome(
    workspace: Path, stops: tuple[int, ...] = (), validation: Any = VALIDATION, seed: int | None = None, **changes: Any
) -> tuple[Any, dict[str, Any]]:
    """Losses, validations, learning rates, weights and optimizer state of a run that is stopped after the given steps."""
    for number, step in enumerate(stops):  # other start weights: all must come from the checkpoint
        stop(workspace, step, number if seed is None else seed, validation, **changes)
    last = 99 if stops else 0
    result = trainer(workspace, last if seed is None else seed, **changes).train(BLOCKS, validation)
    return result, facts_of(result)


def facts_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal, bit for bit."""
    checkpoint = torch.load(result["checkpoint_path"], weights_only=True)
    table = result["metrics_summary"].drop(columns="seconds")
    return {
        "losses": result["step_loss_history"],
        "validations": list(zip(result["val_steps"], result["val_loss_history"])),
        "rates": (Path(result["run_folder"]) / "metrics.csv").read_text(),
        "epochs": table.to_csv(),
        "weights": {k: v.numpy().tobytes() for k, v in result.model.state_dict().items()},
        "optimizer": [
            {k: v.numpy().tobytes() for k, v in slot.items()}
            for slot in checkpoint["optimizer_states"][0]["state"].values()
        ],
        "schedule": checkpoint["lr_schedulers"][0]["last_epoch"],
    }


def digest(facts: Mapping[str, Any]) -> dict[str, str]:
    """The same as one hash each, to be handed from process to process."""
    return {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in facts.items()}


def train_in_this_process(workspace: str, answer: str, changes: dict[str, Any]) -> None:
    """What a process does that may be killed at any time: continue, and write down what came out."""
    torch.set_num_threads(1)
    _, facts = outcome(Path(workspace), **changes)
    temporary = Path(answer + ".tmp")
    temporary.write_text(json.dumps(digest(facts)))
    temporary.replace(answer)


if __name__ == "__main__":
    train_in_this_process(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
