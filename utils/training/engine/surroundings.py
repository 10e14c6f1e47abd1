"""What Lightning would do to the process around a training, and is kept from: ending it, and chatter. Trains nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.utilities.exceptions import SIGTERMException

logger = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM has ended."""


class PatientSignals:
    """Turns the first interrupt (SIGINT) or request to end (SIGTERM) into a wish, so that a step can end and be saved.

    A second one acts at once, as it would have without this class. Only the main thread can listen; elsewhere nothing
    changes.
    """

    def __init__(self) -> None:
        self.wanted: int | None = None
        self._before: dict[int, Any] = {}
        self._process = 0

    def listen(self) -> None:
        """Begin; a second call does nothing."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self.wanted, self._process = None, os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if callable(before) or (before is signal.SIG_DFL and number == signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)

    def leave(self) -> None:
        """Put back what was there; a second call does nothing."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._heard:
                signal.signal(number, before)
        self._before = {}

    def act(self) -> None:
        """Do what was wanted: KeyboardInterrupt, or the end of the process."""
        wanted, self.wanted = self.wanted, None
        self.leave()
        if wanted is not None:
            signal.raise_signal(wanted)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is None and os.getpid() == self._process:  # a forked worker process is not the training
            self.wanted = number
            logger.warning("training stops after this optimizer step and saves it; a second signal stops it at once")
        else:
            self.wanted = number
            self.act()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let an interrupt come out as KeyboardInterrupt, where Lightning would end the process (and a notebook's kernel), and
    SIGTERM end the process with its usual status, where Lightning would end it with 0 as if all were done.
    """
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        if isinstance(error, SIGTERMException):
            raise SystemExit(TERMINATED) from error
        raise


def end_where_asked(engine: pl.Trainer) -> None:
    """End where SIGTERM has come in the meantime, as Lightning does between two batches, and forgets after the last one."""
    if engine.received_sigterm:
        raise SIGTERMException


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's banners, and its advice on loaders and logging that this engine has settled otherwise."""
    loggers = [
        logging.getLogger(name)
        for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    ]
    levels = [item.level for item in loggers]
    try:
        for item in loggers:
            item.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings(
                "ignore", message=".*treespec, LeafSpec.*"
            )  # Lightning 2.6 with torch 2.13, every step
            yield
    finally:
        for item, level in zip(loggers, levels):
            item.setLevel(level)
