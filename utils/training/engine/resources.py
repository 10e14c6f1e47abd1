"""How fast a run goes and how much memory it takes, sampled every few seconds. A callback that watches and changes nothing.

Reading these numbers makes no GPU wait: speed comes from the clock, memory from the allocator's own counters.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from utils.training.run_folder import write_csv

logger = logging.getLogger(__name__)

RESOURCE_COLUMNS = ("step", "seconds", "tokens_per_second", "memory_bytes")
SAMPLE_SECONDS = 5.0
"""Between two samples at the beginning; doubled whenever there are `MOST_SAMPLES`."""
MOST_SAMPLES = 1000


@dataclass(frozen=True)
class ResourceSample:
    """What was measured since the sample before.

    Attributes:
        step: optimizer steps done; seconds: of training so far, over all sittings.
        tokens_per_second: of training, the time of validations left out.
        memory_bytes: most memory that was in use: of the GPU where there is one, else of this process; None if unknown.
    """

    step: int
    seconds: float
    tokens_per_second: float
    memory_bytes: int | None


def memory_in_use(device: torch.device) -> int | None:
    """Most bytes of the GPU that were in use since the last call, or the bytes of this process; None where nobody says."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(peak)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])  # resident pages (Linux)
    except (OSError, ValueError, IndexError):
        return None
    import resource

    return pages * resource.getpagesize()


class ResourceMonitor(pl.Callback):
    """Samples speed and memory; keeps them through a resume and in `resources.csv`.

    Args:
        tokens_per_step: tokens of one optimizer step (samples, for models without tokens).
        path: file to write; None writes none.
        clock: monotonic seconds.
        memory: gives the memory in use on a device.
    """

    def __init__(
        self,
        tokens_per_step: int,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[torch.device], int | None] = memory_in_use,
    ) -> None:
        self.samples: list[ResourceSample] = []
        self._tokens, self._path, self._clock, self._memory = tokens_per_step, path, clock, memory
        self._interval, self._before = SAMPLE_SECONDS, 0.0
        self._mark, self._idle, self._idle_since, self._step = 0.0, 0.0, None, 0  # type: float, float, float | None, int

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark, self._idle, self._idle_since, self._step = self._clock(), 0.0, None, trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._idle_since = self._clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._idle_since is not None:
            self._idle += self._clock() - self._idle_since
            self._idle_since = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._clock() - self._mark - self._idle >= self._interval:
            self._take(trainer.global_step, pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take(trainer.global_step, pl_module.device)
        self._write()

    def _take(self, step: int, device: torch.device) -> None:
        """Keep a sample, where there was a whole step since the last one."""
        spent = self._clock() - self._mark - self._idle
        if step == self._step or spent <= 0:
            return
        self._before += spent
        speed = (step - self._step) * self._tokens / spent
        self.samples.append(ResourceSample(step, self._before, speed, self._memory(device)))
        self._mark, self._idle, self._step = self._clock(), 0.0, step
        if len(self.samples) >= MOST_SAMPLES:
            self.samples = self.samples[1::2]
            self._interval *= 2

    def _write(self) -> None:
        if self._path is not None:
            rows = [(item.step, item.seconds, item.tokens_per_second, item.memory_bytes) for item in self.samples]
            try:
                write_csv(self._path, RESOURCE_COLUMNS, rows)
            except OSError as error:  # a full disk ends no training
                logger.warning("%s cannot be written: %s", self._path, error)

    def state_dict(self) -> dict[str, Any]:
        rows = [[item.step, item.seconds, item.tokens_per_second, item.memory_bytes] for item in self.samples]
        return {"samples": rows, "interval": self._interval, "seconds": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples = [ResourceSample(*row) for row in state_dict["samples"]]
        self._interval, self._before = float(state_dict["interval"]), float(state_dict["seconds"])
