"""Keeps in checkpoints where a stream is, so that a resumed run tokenises nothing twice. Knows streams and callbacks."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from utils.tokenization.samples import Samples
from utils.tokenization.streaming import StreamedBlocks


class StreamPlace(pl.Callback):
    """Puts the places of a stream into each checkpoint, and brings them back.

    Which block comes next is the sampler's to know; these places only say where it lies in the source.
    """

    def __init__(self, blocks: StreamedBlocks) -> None:
        self.blocks = blocks

    def state_dict(self) -> dict[str, Any]:
        return {"places": self.blocks.places()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.blocks.know(state_dict["places"])


def stream_places(samples: Samples) -> list[pl.Callback]:
    """The callback that a stream needs; none for samples that can be asked for in any order."""
    return [StreamPlace(samples)] if isinstance(samples, StreamedBlocks) else []
