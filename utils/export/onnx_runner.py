"""Opens ONNX files with ONNX Runtime. Imports no torch, so that a process that only runs files starts at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils._extras import require
from utils.errors import ExportError
from utils.export.runner import Runner, first_lines, signature_in


class OnnxRunner(Runner):
    """An ONNX file, opened on the CPU.

    Args:
        path: the file; weights may lie beside it.
        threads: threads of ONNX Runtime; None takes one for each core.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        ort = require("onnxruntime", extra="export", feature="Running an ONNX file")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it prints every error that it also raises
        options.intra_op_num_threads = threads or 0
        # Idle threads must sleep: they would take the cores from the model that they are compared with.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise ExportError(f"ONNX Runtime cannot read {path}: {error}") from error
        self.facts: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.signature = signature_in(self.facts, path.name)

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.run`."""
        try:
            return self._session.run(["logits"], dict(feeds))[0]
        except Exception as error:  # its exceptions share no base class
            shapes = {name: value.shape for name, value in feeds.items()}
            raise ExportError(f"ONNX Runtime fails for {shapes}: {first_lines(str(error))}") from error
