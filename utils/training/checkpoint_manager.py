"""Hands on `CheckpointManager` from its home, `engine.checkpoint`."""

from __future__ import annotations

from utils.training.engine.checkpoint import CheckpointManager as CheckpointManager
