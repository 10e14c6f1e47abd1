"""safetensors: the weights alone, under the model's own names, without code. Shared ones are stored once and tied again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from utils._extras import require
from utils.errors import ExportError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.exporter import Exporter, described
from utils.export.parity import Tolerance
from utils.export.runner import Runner
from utils.export.subject import ExportSubject, copied


class SafetensorsExporter(Exporter):
    """Writes `model.safetensors`; `safetensors.torch.load_model(model, path)` reads it into a model of the same class."""

    format: ClassVar[str] = "safetensors"
    file_name: ClassVar[str] = "model.safetensors"
    tolerance: ClassVar[Tolerance] = Tolerance(0.0, 0.0, "the same numbers in the same model: nothing may differ")

    def __init__(self) -> None:
        """Check that safetensors is installed.

        Raises:
            MissingPackageError: it is missing; the message holds the install command.
        """
        require("safetensors", extra="training", feature="A safetensors file")

    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Save the model's state. See `Exporter.write`."""
        from safetensors.torch import save_model

        facts = described(subject, None, "safetensors")
        try:
            save_model(subject.adapted.model, str(path), metadata={**facts, "format": "pt"})
        except RuntimeError as error:  # tensors that overlap and are not the same
            raise ExportError(f"{subject.name!r} cannot be kept as safetensors: {error}") from error
        return Artifact(self.format, path, (path,), facts=facts)

    def runner(self, artifact: Artifact, subject: ExportSubject, child: ChildRuntime) -> Runner:
        """The file read back into a model that had lost every number."""
        return _ReadBack(subject, artifact.path)


class _ReadBack(Runner):
    """A copy of the model with the weights of a file, and of the file alone."""

    def __init__(self, subject: ExportSubject, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        self.signature, self.facts = subject.signature, subject.facts
        model = copied(subject.adapted)
        with torch.no_grad():
            for tensor in model.model.state_dict().values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        try:
            load_model(model.model, str(path), strict=True)
        except (RuntimeError, SafetensorError, json.JSONDecodeError) as error:
            raise ExportError(f"{path.name} cannot be read back into the model: {error}") from error
        self._subject: Any = ExportSubject(model, subject.signature)

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.run`."""
        from utils.export.subject import undisturbed

        with undisturbed(self._subject.adapted):
            return self._subject.logits(dict(feeds))
