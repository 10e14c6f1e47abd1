"""An exported file that can be run: what it takes, where it lies, and the logits of the file as read back from disk.

Knows files and arrays, not models. Leaves reading a format to its exporter and comparing to `parity`.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils._tables import html_table, text_table
from utils.export.runner import Runner, open_file
from utils.export.signature import Shape, Signature

if TYPE_CHECKING:
    from utils.export.parity import ParityReport


@dataclass
class Artifact:
    """One exported format on disk.

    Attributes:
        format: "onnx", …
        path: the file to load; weights may lie beside it (`files`).
        files: every file that belongs to it, `path` first.
        traced_shape: sizes of the example that the exporter saw; the parity grid avoids it. None: no tracing.
        facts: what the file's metadata says.
        parity: the proof; None where it was written with `validate=False`.

    Example:
        >>> artifact = Artifact("onnx", Path("exports/run/model.onnx"))
        >>> artifact.run(input_ids=[[5, 7, 2]]).shape     # (B, T, V), computed by the file, not by the model
    """

    format: str
    path: Path
    files: tuple[Path, ...] = ()
    traced_shape: Shape | None = None
    facts: dict[str, str] = field(default_factory=dict)
    parity: ParityReport | None = field(default=None, repr=False)
    _runner: Runner | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.files = tuple(self.files) or (self.path,)

    def __fspath__(self) -> str:
        """The path, so that `open(artifact)` and `os.path` functions take it."""
        return str(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """An open session belongs to its process: it is opened again where the artifact arrives."""
        return {**self.__dict__, "_runner": None}

    @property
    def runner(self) -> Runner:
        """The opened file; read from disk at the first use.

        Raises:
            ExportError: the file is missing or cannot be read as its format.
        """
        if self._runner is None:
            self._runner = open_file(self.format, self.path)
        return self._runner

    def open_with(self, runner: Runner) -> None:
        """Run through this runner from now on, until `close`."""
        self.close()
        self._runner = runner

    def close(self) -> None:
        """Let go of the opened file."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None

    @property
    def signature(self) -> Signature:
        """What the file takes and gives."""
        return self.runner.signature

    def run(self, **inputs: Any) -> np.ndarray:
        """Run the file.

        Args:
            inputs: what `signature.inputs` names, as tensors, arrays or nested lists: `input_ids` (B, T), `attention_mask`
                (B, T) where the file takes one (left out: all tokens are real), `decoder_input_ids` (B, T_dec) (left out:
                the answer's beginning), or `pixel_values` (B, C, H, W).

        Returns:
            Logits, float32: (B, T, V), (B, T_dec, V) or (B, classes).

        Raises:
            ConfigError: an input is missing, unknown or of another shape; or padding is masked and the file has no mask.
            TokenIdError: an id or the length is beyond what the model takes.
        """
        return self.runner.run(self.signature.checked(inputs, self.path.name))

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.stat().st_size for file in self.files)

    def _lines(self) -> list[tuple[str, object]]:
        traced = "—" if self.traced_shape is None else str(self.traced_shape)
        verdict = "not run" if self.parity is None else self.parity.verdict
        top: list[tuple[str, object]] = [("file", self.path), ("size", f"{self.size_bytes / 1e6:.2f} MB")]
        return [*top, ("traced with", traced), ("parity", verdict), *sorted(self.facts.items())]

    def summary(self) -> str:
        """Path, size, traced shape, verdict and metadata as text."""
        return text_table(("property", "value"), self._lines(), title=f"{self.format} export")

    def _repr_html_(self) -> str:
        return f"<h4>{html.escape(self.format)} export</h4>" + html_table(("property", "value"), self._lines())
