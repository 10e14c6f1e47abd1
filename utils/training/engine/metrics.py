"""Measures of a run. Bits per byte have their home in `tokenization.bits`, below the training."""

from __future__ import annotations

from utils.tokenization.bits import BitsPerByte, Segment, scored_bytes, token_byte_lengths

__all__ = ["BitsPerByte", "Segment", "scored_bytes", "token_byte_lengths"]
