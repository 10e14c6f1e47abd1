"""An exported file that can be run: what it takes, where it lies, and the logits of the file as read back from disk.

Knows files and arrays, not models. Leaves reading a format to its exporter and comparing to `parity`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from utils._tables import html_table, text_table
from utils.errors import ConfigError, TokenIdError

if TYPE_CHECKING:
    from utils.export.parity import ParityReport


class Runner(Protocol):
    """An opened file.

    Attributes:
        input_names: the inputs that the file takes, in order.
        metadata: what the exporter wrote into the file; vocab_size and max_length among it.
    """

    input_names: tuple[str, ...]
    metadata: Mapping[str, str]

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the logits (B, T, V) float32 for int64 arrays (B, T)."""
        ...


@dataclass
class Artifact:
    """One exported format on disk.

    Attributes:
        format: "onnx", …
        path: the file to load; weights may lie beside it (`files`).
        files: every file that belongs to it, `path` first.
        traced_shape: (batch, length) of the example that the exporter saw; the parity grid avoids it. None: no tracing.
        facts: what the file's metadata says.
        parity: the proof; None where it was written with `validate=False`.

    Example:
        >>> artifact = Artifact("onnx", Path("exports/run/model.onnx"))
        >>> artifact.run(input_ids=[[5, 7, 2]]).shape     # (B, T, V), computed by the file, not by the model
    """

    format: str
    path: Path
    files: tuple[Path, ...] = ()
    traced_shape: tuple[int, int] | None = None
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
            from utils.export.exporter import exporter_for

            self._runner = exporter_for(self.format).open(self.path)
        return self._runner

    def close(self) -> None:
        """Let go of the opened file."""
        self._runner = None

    def run(self, **inputs: Any) -> np.ndarray:
        """Run the file.

        Args:
            inputs: `input_ids` (B, T), and `attention_mask` (B, T) where the file takes one (left out: all tokens are
                real). Tensors, arrays or nested lists of whole numbers.

        Returns:
            Logits (B, T, V), float32.

        Raises:
            ConfigError: an input is missing, unknown or of another shape; or padding is masked and the file has no mask.
            TokenIdError: an id or the length is beyond what the model takes.
        """
        return self.runner.run(
            self._feeds({name: _as_ids(name, value) for name, value in inputs.items() if value is not None})
        )

    def _feeds(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names, where = self.runner.input_names, self.path.name
        if "input_ids" not in given:
            raise ConfigError(f"{where} needs input_ids of shape (batch, length); got {sorted(given) or 'nothing'}.")
        mask = given.get("attention_mask")
        if mask is not None and "attention_mask" not in names:
            if not mask.all():
                raise ConfigError(
                    f"{where} takes no attention_mask, so padding cannot be masked; run sequences of one length."
                )
            del given["attention_mask"]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ConfigError(f"{where} has no input {', '.join(unknown)}; it takes {', '.join(names)}.")
        ids = given["input_ids"]
        self._check(ids)
        if "attention_mask" in names:
            given.setdefault("attention_mask", np.ones_like(ids))
            if given["attention_mask"].shape != ids.shape:
                raise ConfigError(
                    f"attention_mask has shape {given['attention_mask'].shape}, input_ids {ids.shape}; they must agree."
                )
        return given

    def _check(self, ids: np.ndarray) -> None:
        """ONNX Runtime reads id −1 as the last row and may run past a limit: refuse what the model itself would refuse."""
        limits = self.runner.metadata
        rows, longest = limits.get("vocab_size"), limits.get("max_length")
        if longest is not None and ids.shape[1] > int(longest):
            raise TokenIdError(f"The sequence is {ids.shape[1]} tokens long; {self.path.name} takes at most {longest}.")
        if ids.size and rows is not None and (ids.min() < 0 or ids.max() >= int(rows)):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise TokenIdError(f"Token id {wrong} does not fit {self.path.name}: its ids go from 0 to {int(rows) - 1}.")

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.stat().st_size for file in self.files)

    def _lines(self) -> list[tuple[str, object]]:
        traced = "—" if self.traced_shape is None else f"batch {self.traced_shape[0]} × length {self.traced_shape[1]}"
        verdict = "not run" if self.parity is None else self.parity.verdict
        top: list[tuple[str, object]] = [("file", self.path), ("size", f"{self.size_bytes / 1e6:.2f} MB")]
        return [*top, ("traced with", traced), ("parity", verdict), *sorted(self.facts.items())]

    def summary(self) -> str:
        """Path, size, traced shape, verdict and metadata as text."""
        return text_table(("property", "value"), self._lines(), title=f"{self.format} export")

    def _repr_html_(self) -> str:
        return f"<h4>{html.escape(self.format)} export</h4>" + html_table(("property", "value"), self._lines())


def _as_ids(name: str, value: Any) -> np.ndarray:
    """An int64 array (B, T) of a tensor, array or nested list."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.ndim != 2 or array.dtype.kind not in "iub" or array.size == 0:
        raise ConfigError(
            f"{name} must be whole numbers of shape (batch, length), at least 1 × 1; got {array.dtype} of shape {array.shape}."
        )
    return array.astype(np.int64)
