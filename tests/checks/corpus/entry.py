"""What a seeded fault is, and how its model is built. Knows no fault and no check.

A model is a source text, as a person's `model.py` is, so that whatever reads sources has one to read. The healthy twins
lie in `bases/`, one file each; a fault is written down as what it changes there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.loading.model_loader import load_model

BASES_FOLDER = Path(__file__).with_name("bases")

V, LIMIT, WIDTH, LAYERS, HEADS, CLASSES, SIDE = 61, 32, 32, 2, 4, 5, 16
"""Vocabulary rows, longest sequence, width, layers, heads, classes, and height and width of an image."""

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt": {
        "vocab_size": V,
        "n_positions": LIMIT,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "dropout": 0.1,
    },
    "multihead": {
        "vocab_size": V,
        "max_seq_len": LIMIT,
        "d_model": WIDTH,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "dropout": 0.1,
    },
    "llama": {
        "vocab_size": V,
        "max_position_embeddings": LIMIT,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "bert": {
        "vocab_size": V,
        "max_position_embeddings": LIMIT,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "classifier": {
        "vocab_size": V,
        "max_seq_len": LIMIT,
        "d_model": WIDTH,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "num_labels": CLASSES,
    },
    "vision": {
        "image_size": SIDE,
        "num_channels": 3,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_labels": CLASSES,
    },
    "seq2seq": {"vocab_size": V, "max_seq_len": LIMIT, "d_model": WIDTH, "num_layers": LAYERS, "num_heads": HEADS},
    "lstm": {"vocab_size": V, "max_seq_len": LIMIT, "hidden_size": WIDTH},
    "convolution": {"vocab_size": V, "max_seq_len": LIMIT, "hidden_size": WIDTH, "num_layers": LAYERS},
}
"""The config.json of each healthy model, by the name of its file in `bases/`."""


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: the fault in plain words, unique.
        base: the healthy model, a key of `CONFIGS`.
        check: the name of the check that is responsible.
        changes: old → new pieces of the base's source; each old piece stands there exactly once.
        cure: the name of the known cure, as a patch calls it; empty where no cure is known.
        config: settings that differ from the base's; the healthy twin has them too.
    """

    name: str
    base: str
    check: str
    changes: Mapping[str, str]
    cure: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The text of model.py with the fault.

        Raises:
            ValueError: an old piece does not stand in the base exactly once.
        """
        text = source_of(self.base)
        for old, new in self.changes.items():
            if text.count(old) != 1:
                raise ValueError(
                    f"{self.name!r}: {old!r} stands {text.count(old)} times in bases/{self.base}.py, not once."
                )
            text = text.replace(old, new)
        return text

    @property
    def settings(self) -> dict[str, Any]:
        """The config of the faulty model and of its twin."""
        return {**CONFIGS[self.base], **self.config}

    def build(self) -> AdaptedModel:
        """The faulty model, adapted."""
        return build(self.source, self.settings)

    def build_twin(self) -> AdaptedModel:
        """The healthy twin, adapted."""
        return build(source_of(self.base), self.settings)


def source_of(base: str) -> str:
    """The text of a healthy model."""
    return (BASES_FOLDER / f"{base}.py").read_text(encoding="utf-8")


def build(source: str, config: Mapping[str, Any]) -> AdaptedModel:
    """Load a model as a person would, from a folder with model.py and config.json; the weights are seeded.

    Raises:
        ModelLoadError: the source cannot be imported or its class not built.
        GraphCompletionError: the source leaves something open.
        CallContractError: how to call the model cannot be settled.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.py").write_text(source, encoding="utf-8")
        Path(folder, "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        return adapt(load_model(folder))
