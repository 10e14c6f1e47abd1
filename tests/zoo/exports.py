"""Broken exports, one for each fault, as zoo entries: adapted from their source, held against forwards written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.adapters.broken_exports import CASES, Export, T, V
from tests.zoo.entry import Batch, Entry, text
from utils.loading.sources import import_source


def _builder(case: Export) -> Any:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return import_source({"model.py": case.source}, "model.py").Net()

    return build


def _entry(name: str, case: Export) -> Entry:
    def reference(model: Any, batch: Batch) -> torch.Tensor:
        return case.reference(model, batch["input_ids"])

    return Entry(
        f"export: {name}",
        "lm",
        _builder(case),
        reference,
        text(V),
        "broken export",
        config=case.config,
        source=case.source,
        arguments=case.arguments,
        limit=T,
    )


ENTRIES = [_entry(name, case) for name, case in CASES.items()]
