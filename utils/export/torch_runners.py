"""Opens files of torch's own formats, without the model that they came from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import ExportError
from utils.export.runner import Runner, first_lines, signature_in

METADATA = "metadata.json"
"""Name of the file inside torch's archives that holds what is known about the model."""


class _TorchRunner(Runner):
    """A file that torch opens.

    Args:
        path: the file.
        threads: threads of torch, for the whole process; None leaves them as they are.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        extra = {METADATA: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # each opening of a legacy file tells that it is one
                self._module = self._load(path, extra)
        except Exception as error:  # torch's readers raise what they meet
            raise ExportError(f"torch cannot read {path}: {type(error).__name__}: {first_lines(str(error))}") from error
        self.facts: Mapping[str, str] = json.loads(extra[METADATA] or "{}")
        self.signature = signature_in(self.facts, path.name)

    def _load(self, path: Path, extra: dict[str, str]) -> Any:
        raise NotImplementedError

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.run`."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}
        try:
            with torch.no_grad():
                return self._module(**tensors).float().numpy()
        except Exception as error:  # whatever an operator raises
            shapes = {name: tuple(value.shape) for name, value in feeds.items()}
            raise ExportError(
                f"The file fails for {shapes}: {type(error).__name__}: {first_lines(str(error))}"
            ) from error


class ProgramRunner(_TorchRunner):
    """A `.pt2` file."""

    def _load(self, path: Path, extra: dict[str, str]) -> Any:
        return torch.export.load(path, extra_files=extra).module()


class ScriptRunner(_TorchRunner):
    """A TorchScript file."""

    def _load(self, path: Path, extra: dict[str, str]) -> Any:
        return torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
