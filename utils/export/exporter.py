"""The face that every format shows, and the way from a model to a proven file. Knows no format itself.

A format is one file with one subclass of `Exporter`: `write` makes the file, `open` reads it back. Everything else is
here and the same for all: write into a staging folder, prove, move into place. A new format adds its line to `FORMATS`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from utils.errors import ConfigError, ParityError
from utils.export.artifact import Artifact, Runner
from utils.export.parity import ParityReport, Tolerance, lengths_for, prove
from utils.export.subject import ExportSubject

FORMATS = {"onnx": ("utils.export.onnx", "ONNXExporter")}
"""Format name → where its exporter lives; loaded when the format is asked for."""

ProgressCallback = Callable[[int, "int | None", str], None]
"""Called with (done, total or None, note)."""


class Exporter(ABC):
    """One format.

    Attributes:
        format: the name by which people ask for it.
        file_name: the name of its file in a bundle.
        tolerance: how far its logits may be from the model's, and why.
    """

    format: ClassVar[str]
    file_name: ClassVar[str]
    tolerance: ClassVar[Tolerance]

    @abstractmethod
    def write(self, subject: ExportSubject, path: Path) -> Artifact:
        """Write `path` (and files beside it) in a folder of its own, and check that it is well-formed.

        Raises:
            ExportError: the format cannot hold this model; the message says why and what to do.
        """

    @abstractmethod
    def open(self, path: Path) -> Runner:
        """Read a file back.

        Raises:
            ExportError: the file is missing or is none of this format.
        """

    def stage(
        self,
        subject: ExportSubject,
        folder: Path,
        file_name: str | None = None,
        *,
        validate: bool = True,
        validation_text: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> Artifact:
        """Write the file into `folder` and prove it there.

        Raises:
            ExportError: it cannot be written.
            ParityError: it was written and is not equal to the model.
        """
        if progress is not None:
            progress(0, None, f"{self.format}: writing")
        artifact = self.write(subject, folder / (file_name or self.file_name))
        if validate:
            artifact.parity = prove(
                artifact, subject, self.tolerance, validation_text=validation_text, progress=progress
            )
            _refuse_unequal(artifact.parity, subject.name)
        artifact.close()
        return artifact

    def deliver(self, subject: ExportSubject, destination: Path, *, validate: bool = True) -> Artifact:
        """Write, prove and move to `destination`; where that fails, nothing new is there."""
        with staging_folder(destination.parent) as folder:
            return publish(self.stage(subject, folder, destination.name, validate=validate), destination.parent)


def exporter_for(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        ConfigError: the format is unknown; the message names the known ones and the nearest.
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(str(name).lower(), FORMATS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"The export format {name!r} is unknown{hint} Known: {', '.join(FORMATS)}.")
    module, attribute = FORMATS[name]
    return getattr(importlib.import_module(module), attribute)()


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder inside `parent`, so that moving out of it is a rename; gone afterwards, with whatever is left in it.

    Folders that had to be created for it are removed again where they stay empty.
    """
    created = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        for made in created:
            if any(made.iterdir()):
                break
            made.rmdir()


def publish(artifact: Artifact, folder: Path) -> Artifact:
    """Move a staged artifact into `folder`, its main file last, and return it with its new paths."""
    artifact.close()
    for file in reversed(artifact.files):
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(file, folder / file.name)
    artifact.files = tuple(folder / file.name for file in artifact.files)
    artifact.path = folder / artifact.path.name
    return artifact


def traced_shape_for(max_length: int) -> tuple[int, int]:
    """A (batch, length) to trace with that the parity grid never visits.

    Batch and length differ from each other and, where the limit leaves room, from 1: an exporter treats sizes 0 and 1 as
    constants, and may take two equal sizes for one.
    """
    visited = lengths_for(max_length)
    candidates = [length for length in (11, 10, 9, 6, 5, 4, 3, 2) if length <= max_length]
    length = next((length for length in candidates if length not in visited), candidates[0] if candidates else 1)
    return (4 if length == 2 else 2), length


def _refuse_unequal(parity: ParityReport, name: str) -> None:
    if not parity.passed:
        raise ParityError(
            f"The file exported from {name!r} is not equal to the model and was not kept: {parity.verdict}\n"
            f"{parity.summary()}\nA shape in the table that fails while others pass points to a size fixed in forward; a "
            "difference everywhere points to randomness or state in forward.",
            parity,
        )
