"""Settings that fit a purpose, by name: the one home of them. Holds values; `TrainingConfig.preset` makes settings of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings for a purpose; what is not named keeps its default.

    Attributes:
        name: as `TrainingConfig.preset` takes it. purpose: one sentence for whoever chooses. settings: name → value.
    """

    name: str
    purpose: str
    settings: dict[str, Any] = field(default_factory=dict)


FAST_DEV = Preset(
    "fast_dev",
    "Twenty steps, to see that everything runs; the result is worth nothing.",
    {"max_steps": 20, "batch_size": 4, "val_every_n_steps": 10, "save_every_n_minutes": 0.0},
)
STANDARD = Preset(
    "standard",
    "A model of up to some ten million parameters from scratch, on one GPU or a patient CPU.",
    {"epochs": 10, "batch_size": 16, "weight_decay": 0.1, "early_stopping_patience": 3},
)
LARGE = Preset(
    "large",
    "A model of a hundred million parameters or more on one GPU: small micro-batches, less memory, a lower rate.",
    {
        "epochs": 3,
        "batch_size": 4,
        "gradient_accumulation_steps": 16,
        "learning_rate": 3e-4,
        "weight_decay": 0.1,
        "warmup_ratio": 0.03,
        "gradient_checkpointing": True,
        "compile_mode": "default",
        "save_every_n_minutes": 20.0,
    },
)
CLASSIFICATION = Preset(
    "classification",
    "Texts with a class each: short passes, a low rate, the best of several validations.",
    {
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 2e-4,
        "weight_decay": 0.05,
        "label_smoothing": 0.05,
        "early_stopping_patience": 3,
    },
)
VISION = Preset(
    "vision",
    "Images with a class each: larger batches, more decay, smoothed labels and averaged weights.",
    {
        "epochs": 30,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "ema_decay": 0.99,
        "num_workers": 2,
    },
)

PRESETS = {preset.name: preset for preset in (FAST_DEV, STANDARD, LARGE, CLASSIFICATION, VISION)}
"""Name → preset, in the order in which they are offered."""
