"""The formats by name. Imports nothing, so that command line and settings can name them at once."""

from __future__ import annotations

FORMATS = {
    "onnx": ("utils.export.onnx", "ONNXExporter"),
    "pt2": ("utils.export.torch_export", "TorchExportExporter"),
    "torchscript": ("utils.export.torchscript", "TorchScriptExporter"),
    "int8": ("utils.export.quantization", "Int8Exporter"),
    "int8_static": ("utils.export.quantization", "StaticInt8Exporter"),
    "int8_pt2": ("utils.export.torchao_int8", "TorchaoInt8Exporter"),
    "hf": ("utils.export.hf_folder", "HFFolderExporter"),
    "safetensors": ("utils.export.safetensors_state", "SafetensorsExporter"),
}
"""Format name → where its exporter lives; loaded when the format is asked for."""

MANIFEST = "manifest.json"
"""Name of the file that lists an exported folder; written last."""
