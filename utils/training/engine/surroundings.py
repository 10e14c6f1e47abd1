"""What Lightning would do to the process around a training, and is kept from: ending it, and chatter. Trains nothing."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from lightning_fabric.utilities.warnings import PossibleUserWarning


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let an interrupt come out as KeyboardInterrupt, where Lightning would end the process (and a notebook's kernel)."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # SIGTERM ends the process as it should
            raise KeyboardInterrupt from error
        raise


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
