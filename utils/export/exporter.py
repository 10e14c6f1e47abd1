"""The face that every format shows, and the way from a model to a proven file. Knows no format itself.

A format is one file with one subclass of `Exporter`, whose `write` makes the file; what reads it back is listed in
`runner.OPENERS`. Everything else is here and the same for all: write into a staging folder, prove, move into place. A new
format adds its line to `formats.FORMATS`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import platform
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import utils
from utils._files import lock_file
from utils.errors import ConfigError, ExportError, ParityError, TransformerBuilderError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.export_folder import check_file, set_aside
from utils.export.formats import FORMATS
from utils.export.parity import ParityReport, Tolerance, lengths_for, prove
from utils.export.runner import Runner, first_lines
from utils.export.signature import Shape, Signature
from utils.export.subject import ExportSubject
from utils.progress import ProgressCallback, ignore_progress

PRODUCER = "transformer-builder-colab"

_STAGING, _LOCK = ".export-", ".lock"


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

    def runner(self, artifact: Artifact, subject: ExportSubject, child: ChildRuntime) -> Runner:
        """The file as it is opened for its proof: in another process, so that a crash of its runtime is a finding."""
        return child.open(self.format, artifact.path)

    def stage(
        self,
        subject: ExportSubject,
        folder: Path,
        child: ChildRuntime,
        file_name: str | None = None,
        *,
        validate: bool = True,
        progress: ProgressCallback = ignore_progress,
    ) -> Artifact:
        """Write the file into `folder`, a folder of its own, and prove it there.

        Raises:
            ExportError: it cannot be written.
            ParityError: it was written and is not equal to the model.
        """
        progress(0, None, f"{self.format}: writing")
        folder.mkdir(exist_ok=True)
        artifact = self.write(subject, folder / (file_name or self.file_name))
        if validate:
            artifact.parity = self.prove(artifact, subject, child, progress)
            _refuse_unequal(artifact.parity, self.format, subject.name)
        return artifact

    def prove(
        self, artifact: Artifact, subject: ExportSubject, child: ChildRuntime, progress: ProgressCallback
    ) -> ParityReport:
        """Hold the written file against the model."""
        artifact.open_with(self.runner(artifact, subject, child))
        try:
            return prove(artifact, subject, self.tolerance, progress=progress)
        finally:
            artifact.close()

    def deliver(self, subject: ExportSubject, destination: Path, *, validate: bool = True) -> Artifact:
        """Write, prove and move to `destination`; where that fails, nothing new is there."""
        with staging_folder(destination.parent) as folder, ChildRuntime() as child, failures_told(self.format, subject):
            staged = self.stage(subject, folder / self.format, child, destination.name, validate=validate)
            return publish(staged, destination.parent)


@contextlib.contextmanager
def failures_told(format_name: str, subject: ExportSubject) -> Iterator[None]:
    """Turns whatever making or proving one format raises into the reason why it is not there; other formats go on.

    Raises:
        ExportError: of any other error than that, with its kind and words.
    """
    try:
        yield
    except ExportError:
        raise
    except TransformerBuilderError as error:
        raise ExportError(f"The {format_name} file of {subject.name!r} cannot be made: {error}") from error
    except Exception as error:  # a model's code, a full disk, a library: each keeps this format from being proven
        raise ExportError(
            f"The {format_name} file of {subject.name!r} cannot be made or proven: {type(error).__name__}: "
            f"{first_lines(str(error))}"
        ) from error


def destination_of(output_path: str | Path, file_name: str, *, any_ending: bool = False) -> Path:
    """Where one file goes: into an existing folder under the format's own name, else to the path itself.

    Raises:
        ConfigError: no file can be there, or its ending is another than the format's and that matters.
    """
    path = check_file(output_path, "output_path")
    destination = path / file_name if path.is_dir() else path
    ending = Path(file_name).suffix
    if destination.suffix != ending and not any_ending:
        raise ConfigError(f"output_path must end in {ending}; got {str(output_path)!r}.")
    return destination


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


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder inside `parent`, so that moving out of it is a rename; gone afterwards, with whatever is left in it.

    Folders that had to be created for it are removed again where they stay empty. A lock beside it tells that its export
    is alive; what exports that were killed have left is removed first.

    Raises:
        ConfigError: nothing can be written into `parent`.
    """
    created = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        lock = tempfile.NamedTemporaryFile(prefix=_STAGING, suffix=_LOCK, dir=parent, delete=False)  # noqa: SIM115
    except OSError as error:
        _remove_empty([folder for folder in created if folder.exists()])
        raise ConfigError(f"Nothing can be written into {parent}: {error}. Choose another folder.") from error
    folder = Path(lock.name.removesuffix(_LOCK))
    try:
        with lock:
            with contextlib.suppress(OSError):  # a file system without locks: then nobody takes it for abandoned either
                lock_file(lock)
            with _folder_until_done(folder):
                yield folder
    finally:
        _remove_lock(Path(lock.name))
        _remove_empty(created)


@contextlib.contextmanager
def _folder_until_done(folder: Path) -> Iterator[None]:
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder)


def _remove_lock(path: Path) -> None:
    """Remove a lock's file, which nobody here has open any more: Windows removes no open file."""
    with contextlib.suppress(PermissionError):  # Windows: another export has it open to see whether this one is alive
        path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that holds something."""
    for folder in folders:
        if any(folder.iterdir()):
            break
        folder.rmdir()


def _remove_abandoned(parent: Path) -> None:
    """Remove the staging folders of processes that are gone."""
    for path in parent.glob(f"{_STAGING}*{_LOCK}"):
        try:
            with open(path, "rb") as lock:
                lock_file(lock)
                shutil.rmtree(str(path).removesuffix(_LOCK), ignore_errors=True)
        except OSError:  # its export is alive, or has just ended and removed it
            continue
        _remove_lock(path)


def publish(artifact: Artifact, folder: Path) -> Artifact:
    """Move a staged artifact into `folder`, its main file last, and return it with its new paths.

    A file of the same name is replaced; a folder is kept under another name, since nothing says whose files it holds.
    """
    artifact.close()
    staged = artifact.path.parent
    for file in artifact.files:
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
    for entry in sorted(staged.iterdir(), key=lambda entry: entry == artifact.path):
        destination = folder / entry.name
        if destination.is_dir():
            set_aside(destination)
        os.replace(entry, destination)
    artifact.files = tuple(folder / file.relative_to(staged) for file in artifact.files)
    artifact.path = folder / artifact.path.name
    return artifact


def traced_shape_for(signature: Signature) -> Shape:
    """Sizes to trace with that the parity grid never visits.

    Batch and length differ from each other and, where the limit leaves room, from 1: an exporter treats sizes 0 and 1 as
    constants, and may take two equal sizes for one.
    """
    if not signature.takes_tokens:
        return Shape(2)
    visited = lengths_for(signature)
    possible = list(dict.fromkeys(signature.allowed_length(length) for length in (11, 10, 9, 6, 5, 4, 3, 2)))
    length = next((length for length in possible if length not in visited), possible[0])
    if not signature.has_decoder:
        return Shape(4 if length == 2 else 2, length)
    answer = next((other for other in possible if other not in (*visited, length)), possible[-1])
    return Shape(next(batch for batch in (2, 4, 5) if batch not in (length, answer)), length, answer)


def _refuse_unequal(parity: ParityReport, format_name: str, name: str) -> None:
    if not parity.passed:
        raise ParityError(
            f"The {format_name} file of {name!r} is not equal to the model and was not kept: {parity.verdict}\n"
            f"{parity.summary()}\nA shape in the table that fails while others pass points to a size fixed in forward; a "
            "difference everywhere points to randomness or state in forward.",
            parity,
        )


def described(subject: ExportSubject, traced: Shape | None, *packages: str) -> dict[str, str]:
    """What a person who finds a file later needs to know about it; plain strings, no dates, so that it is repeatable.

    Args:
        subject: the model.
        traced: sizes that the exporter saw.
        packages: distributions that had a part in writing the file, beside torch.
    """
    seen = {} if traced is None else {"traced_shape": str(traced)}
    versions = {name: metadata.version(name) for name in ("torch", *packages)}
    return {
        **subject.facts,
        "format_version": "1",
        **seen,
        "python": platform.python_version(),
        **versions,
        PRODUCER: utils.__version__,
    }
