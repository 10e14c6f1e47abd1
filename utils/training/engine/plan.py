"""What one training consists of, settled before its first step: blocks, steps, loaders, callbacks. Decides nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from utils.tokenization.batch_order import EpochBatchSampler, Window
from utils.tokenization.bits import BitsPerByte
from utils.tokenization.samples import Samples
from utils.training.engine.loop import LossesPerByte, TrainingLoop, ValidationLoop
from utils.training.engine.resume import ResumableCheckpoint
from utils.training.engine.watching import Watchers


@dataclass
class Plan:
    """What one training will do, settled before its first step.

    Attributes:
        train, validation: samples; window: samples per optimizer step; total_steps: optimizer steps of the whole run.
        bits: turns losses into bits per byte where a tokenizer is known.
        scored_bytes: UTF-8 bytes over which those of the validation are taken; None where they are not.
    """

    train: Samples
    validation: Samples | None
    window: Window
    total_steps: int
    steps_per_epoch: int
    bits: LossesPerByte
    scored_bytes: int | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, without padding; the mean where samples differ."""
        return round(self.window.batch_size * self.window.accumulation * self.train.tokens / len(self.train))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both parts of the data."""
        both = f"{self.train.fingerprint}:{self.validation.fingerprint if self.validation is not None else None}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What a result says about the plan, in plain types, for checkpoints: see `recovery`."""
        bits = {
            part: [value.tokens, value.size] if isinstance(value, BitsPerByte) else None
            for part, value in (("train", self.bits.train), ("validation", self.bits.validation))
        }
        return {
            "scored_bytes": self.scored_bytes,
            "block_length": self.train.longest,
            "total_steps": self.total_steps,
            "bits": bits,
        }


@dataclass
class Loaders:
    """Loaders over the blocks of both parts."""

    train: DataLoader[Any]
    validation: DataLoader[Any] | None

    @property
    def sampler(self) -> EpochBatchSampler:
        """The order of the training blocks."""
        assert isinstance(self.train.batch_sampler, EpochBatchSampler)
        return self.train.batch_sampler


@dataclass
class Callbacks:
    """The callbacks of a run, in the order in which Lightning calls them.

    Attributes:
        deciding: those that change weights or end the run.
        checkpoint: the one that saves; it is the last, so that it sees what the others kept.
        data: those that keep where the data is.
    """

    training: TrainingLoop
    validation: ValidationLoop
    deciding: list[pl.Callback]
    watchers: Watchers
    checkpoint: ResumableCheckpoint
    data: list[pl.Callback] = field(default_factory=list)

    def in_order(self) -> list[pl.Callback]:
        """All of them."""
        return [
            *(self.training, self.validation, *self.data, *self.deciding, *self.watchers.in_order()),
            self.checkpoint,
        ]

    def restore_finished(self, checkpoint: dict[str, Any]) -> None:
        """Take the histories of a run whose last step has been done from its checkpoint."""
        for callback in (self.training, self.validation):
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
        self.watchers.load(checkpoint["callbacks"])
        self.training.finish(checkpoint["epoch"])
