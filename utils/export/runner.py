"""An opened file, whatever its format: arrays in, logits out, and how long that takes. Imports no torch."""

from __future__ import annotations

import importlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import ExportError
from utils.export.signature import Signature

OPENERS = {
    "onnx": ("utils.export.onnx_runner", "OnnxRunner"),
    "int8": ("utils.export.onnx_runner", "OnnxRunner"),
    "int8_static": ("utils.export.onnx_runner", "OnnxRunner"),
    "pt2": ("utils.export.torch_runners", "ProgramRunner"),
    "int8_pt2": ("utils.export.torch_runners", "ProgramRunner"),
    "torchscript": ("utils.export.torch_runners", "ScriptRunner"),
    "hf": ("utils.export.hf_runner", "HFFolderRunner"),
}
"""Format name → what opens its files: called with the path and the number of threads. They know nothing of exporters."""

_TIMING_SECONDS = 0.05
"""A call is run again, at most twice, while its runs took less than this."""


class Runner(ABC):
    """An opened file.

    Attributes:
        signature: what the file says that it takes and gives.
        facts: everything else that its metadata says.
    """

    signature: Signature
    facts: Mapping[str, str]

    @abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """The logits, float32, for the arrays of `Signature.feeds`.

        Raises:
            ExportError: the runtime refuses them or fails.
        """

    def timed(self, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float]:
        """The logits, and the shortest of up to three runs in milliseconds; one run where that takes long."""
        times: list[float] = []
        while not times or (len(times) < 3 and sum(times) < _TIMING_SECONDS):
            start = time.perf_counter()
            result = self.run(feeds)
            times.append(time.perf_counter() - start)
        return result, 1000 * min(times)

    def close(self) -> None:  # noqa: B027 - most runners hold nothing that must be let go
        """Let go of what the file holds open."""


def signature_in(metadata: Mapping[str, str], where: str) -> Signature:
    """The signature in a file's metadata.

    Raises:
        ExportError: there is none: the file was not written by this package.
    """
    if "signature" not in metadata:
        raise ExportError(
            f"{where} holds no signature: it was not exported by this package, or by an early release. Export it again."
        )
    return Signature.from_json(metadata["signature"])


def open_file(format_name: str, path: Path, threads: int | None = None) -> Runner:
    """Open an exported file.

    Args:
        format_name: one of `OPENERS`.
        path: the file, or the folder where the format is one.
        threads: threads of its runtime; None leaves that to the runtime.

    Raises:
        ExportError: the file is missing or is none of this format.
    """
    if not path.exists():
        raise ExportError(f"There is no {format_name} file at {path}.")
    if format_name not in OPENERS:
        raise ExportError(
            f"{path.name} ({format_name}) holds weights and no model. Load them into one of the same class, with "
            "safetensors.torch.load_model(model, path), or run another format."
        )
    module, name = OPENERS[format_name]
    return getattr(importlib.import_module(module), name)(path, threads)


def first_lines(text: str, count: int = 4) -> str:
    """The first lines of a foreign message, without terminal colours; of TorchScript's tracebacks the last, the reason."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    if "TorchScript interpreter" in text:
        lines = lines[-1:]
    return " ".join(lines[:count])[:600]
