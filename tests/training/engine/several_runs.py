"""Runs for one or several processes, and a job that starts them: `launch` in a test, `main` in each process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.distributed.fsdp import FSDPModule

from tests.training.tiny import make_tiny
from utils.errors import TrainingStopped
from utils.tokenization.batches import PaddedDocuments
from utils.tokenization.block_cache import in_memory
from utils.tokenization.loaders import SHARE
from utils.tokenization.packing import PackedBlocks
from utils.training.engine.processes import Processes
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

ROOT = Path(__file__).parents[3]

LENGTH = 16

NUMBERED = np.random.default_rng(0).integers(0, 300, (23, 16)).astype(np.uint16)
NUMBERED[:, 0] = np.arange(23)
VALIDATION = np.random.default_rng(1).integers(0, 300, (5, 16)).astype(np.uint16)


def documents(number: int, seed: int) -> PaddedDocuments:
    """Of 2 to 16 tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, LENGTH, number, endpoint=True)
    ids = random.integers(0, 300, int(lengths.sum())).astype(np.uint16)
    return PaddedDocuments(in_memory([(ids, lengths.tolist())], np.dtype(np.uint16), f"{seed}"), LENGTH, 0)


DATA = {
    "blocks": lambda: (PackedBlocks(NUMBERED), VALIDATION),
    "documents": lambda: (documents(23, 2), documents(5, 3)),
}


class StopError(Exception):
    """Stands for a machine that goes away."""


class Watch(pl.Callback):
    """Keeps which samples each optimizer step saw, by their first token, and how many modules are gathered by themselves;
    stops, or kills, before the step after `stop`.
    """

    def __init__(self, stop: int | None, kill: bool) -> None:
        self.seen: dict[int, list[int]] = {}
        self.stop, self.kill, self.shards = stop, kill, 0

    def on_train_start(self, trainer, pl_module):
        self.shards = sum(isinstance(module, FSDPModule) for module in pl_module.modules())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.stop:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise StopError
        if SHARE not in batch or float(batch[SHARE]) > 0:
            self.seen.setdefault(trainer.global_step + 1, []).extend(batch["input_ids"][:, 0].tolist())


class WatchedTrainer(Trainer):
    watch: Watch

    def _setup_engine(self, *arguments):
        engine = super()._setup_engine(*arguments)
        engine.callbacks.insert(0, self.watch)
        return engine


def run(
    workspace: str | Path,
    data: str = "blocks",
    stop: int | None = None,
    kill: bool = False,
    strategy: str = "ddp",
    dropout: float = 0.0,
    idle: bool = False,
    layers: int = 1,
    double: bool = False,
    ask_rank: int | None = None,
    ask_after: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """Train, or go on, in as many processes as were launched; what all of them saw and what came out.

    `stop` (by an error, or `kill -9`) is the last step that is done. `idle` gives the model weights that it does not use,
    `layers` as many blocks, `double` float64, in which the order of a sum is no matter.
    In the process `ask_rank` the training is asked to stop after the step `ask_after`.
    """
    processes = Processes.here()
    several = {"strategy": strategy, "devices": processes.world} if processes.several else {}
    settings = {"batch_size": 4, "learning_rate": 1e-2, "save_every_n_steps": 1, "run_name": "r", **several, **changes}
    adapted = make_tiny(
        processes.rank, layers, dropout=dropout, length=LENGTH
    )  # the first process's weights are those of all
    if double:
        adapted.model.double()
    if idle:
        adapted.model.idle = torch.nn.Linear(3, 3)

    def asked() -> bool:
        return processes.rank == ask_rank and trainer.engine.global_step >= ask_after

    trainer = WatchedTrainer(
        adapted, None, TrainingConfig(**settings), workspace=workspace, resume="continue", stop=asked
    )
    trainer.watch = Watch(stop, kill)
    found: dict[str, Any] = {}
    try:
        result = trainer.train(*DATA[data]())
        found = {
            "losses": result["step_loss_history"],
            "validations": list(zip(result["val_steps"], result["val_loss_history"])),
            "norms": result["gradient_norm_history"],
            "samples": result["accumulation"].samples,
            "labels": result["accumulation"].labels,
            "shards": trainer.watch.shards,
        }
    except (StopError, TrainingStopped) as error:
        found = {"stopped": processes.gather(type(error).__name__)}
    seen: dict[int, list[int]] = {}
    for part in processes.gather(trainer.watch.seen):
        for step, ids in part.items():
            seen.setdefault(step, []).extend(ids)
    return {**found, "seen": {str(step): sorted(ids) for step, ids in seen.items()}}


def launch(folder: Path, jobs: dict[str, dict[str, Any]], world: int = 2) -> dict[str, Any]:
    """Run jobs, one after another, in `world` processes that torchrun starts; what came out of each that ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    torchrun([str(Path(__file__)), str(folder)], world)
    return {
        name: json.loads((folder / f"{name}.out").read_text()) for name in jobs if (folder / f"{name}.out").exists()
    }


def torchrun(words: list[str], world: int = 2) -> subprocess.CompletedProcess[str]:
    """Start processes as people do."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}", *words]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    return subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, job in json.loads((folder / "jobs.json").read_text()).items():
        found = run(folder / job.pop("workspace", name), **job)
        if Processes.here().leads:
            (folder / f"{name}.out").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
