"""Export: files that run elsewhere, each proven equal to the model. The room and its verb share one name.

`utils.export(result, formats=("onnx",), out="exports/run")` is the verb, `utils.export.onnx` a file of the room: people
type the first and import from the second, and neither name may hide the other, whichever was imported first. So this
module *is* the verb: its class is a `ModuleType` with a `__call__`. Nothing here imports torch; the work is in `bundle`.

The files: `subject` (what is exported, and its reference logits) and its `signature`; `exporter` (the face that every
format shows) and the formats themselves, listed in `formats`; `parity` (the proof), which runs files in a `child` process;
`artifact` (a file that can be run); `bundle` (the folder with its manifest), with `runtime_files` and `model_card`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.export.artifact import Artifact
    from utils.export.bundle import Bundle
    from utils.export.onnx import ONNXExporter
    from utils.export.parity import ParityReport
    from utils.progress import ProgressCallback

__all__ = ["Artifact", "Bundle", "ONNXExporter", "ParityReport"]

_HOMES = {
    "Artifact": "utils.export.artifact",
    "Bundle": "utils.export.bundle",
    "ONNXExporter": "utils.export.onnx",
    "ParityReport": "utils.export.parity",
}


class _CallableRoom(ModuleType):
    """The module type of this package: an ordinary module that can also be called as the verb `export`."""

    def __call__(
        self,
        result_or_adapted: object,
        formats: Sequence[str] = ("onnx",),
        out: str | Path = "exports/run",
        *,
        tokenizer: object = None,
        config: object = None,
        validation_text: str | None = None,
        runtime: bool = True,
        progress: ProgressCallback | None = None,
    ) -> Bundle:
        """Write each format into `out`, once it is proven equal to the model. See `utils.export.bundle.export`."""
        from utils.export.bundle import export

        return export(
            result_or_adapted,
            formats,
            out,
            tokenizer=tokenizer,
            config=config,
            validation_text=validation_text,
            runtime=runtime,
            progress=progress,
        )


sys.modules[__name__].__class__ = _CallableRoom


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
