"""Hands on what people import from here; the export room, a floor above, is its home."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.export.bundle import create_export_bundle
    from utils.export.model_card import ModelCardGenerator
    from utils.export.onnx import ONNXExporter
    from utils.export.torchscript import TorchScriptExporter

__all__ = ["ModelCardGenerator", "ONNXExporter", "TorchScriptExporter", "create_export_bundle"]

_HOMES = {
    "ModelCardGenerator": "utils.export.model_card",
    "ONNXExporter": "utils.export.onnx",
    "TorchScriptExporter": "utils.export.torchscript",
    "create_export_bundle": "utils.export.bundle",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
