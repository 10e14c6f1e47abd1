"""The export folder: proven files and a manifest that lists them, written last. The verb `utils.export` lives here.

Leaves making a file to its exporter and judging it to `parity`. A folder without manifest is not finished; what somebody
else put into it stays.
"""

from __future__ import annotations

import html
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import utils
from utils._files import sha256_of, write_json
from utils._tables import html_table, text_table
from utils.errors import ConfigError, ExportError, ParityError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.exporter import PRODUCER, Exporter, exporter_for, publish, staging_folder
from utils.export.parity import ParityReport
from utils.export.samples import samples_of
from utils.export.subject import ExportSubject, subject_of
from utils.progress import ProgressCallback, ignore_progress

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_KIND = "transformer-builder-export"
_COLUMNS = ("file", "format", "size", "SHA-256")


@dataclass
class Bundle:
    """What an export left on disk.

    Attributes:
        out: the folder.
        artifacts: one for each format that was proven, in the order asked for; `bundle["onnx"]` picks one.
        refused: format → why it is not there.
        parity: the proof of all of them.
        files: every file that was written, the manifest last.
        manifest: the manifest's content.
    """

    out: Path
    artifacts: tuple[Artifact, ...]
    parity: ParityReport
    files: tuple[Path, ...]
    manifest: dict[str, Any] = field(repr=False, default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, format_name: str) -> Artifact:
        for artifact in self.artifacts:
            if artifact.format == format_name:
                return artifact
        if format_name in self.refused:
            raise KeyError(f"{format_name!r} was refused: {self.refused[format_name]}")
        raise KeyError(f"{format_name!r} was not exported; there is {', '.join(a.format for a in self.artifacts)}")

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (e["name"], e["format"], f"{e['bytes'] / 1e6:.2f} MB", e["sha256"][:16] + "…")
            for e in self.manifest["files"]
        ]

    def summary(self) -> str:
        """The files and the parity table as text."""
        files = text_table(_COLUMNS, self._rows(), title=f"Exported to {self.out}")
        refused = "".join(f"\n{name} was refused: {why.splitlines()[0]}" for name, why in self.refused.items())
        return f"{files}{refused}\n\n{self.parity.summary()}"

    def _repr_html_(self) -> str:
        head = f"<h4>Exported to {html.escape(str(self.out))}</h4>"
        refused = "".join(
            f"<p><b>{html.escape(name)}</b> was refused: {html.escape(why.splitlines()[0])}</p>"
            for name, why in self.refused.items()
        )
        return head + html_table(_COLUMNS, self._rows()) + refused + self.parity._repr_html_()


def export(
    result_or_adapted: object,
    formats: Sequence[str] = ("onnx",),
    out: str | Path = "exports/run",
    *,
    tokenizer: object = None,
    config: object = None,
    validation_text: str | None = None,
    progress: ProgressCallback | None = None,
) -> Bundle:
    """Write a model in each format, prove each file equal to the model, and list them in a manifest.

    All files are written and proven in a hidden folder inside `out` first. What is proven moves into place; a format that
    cannot be proven is not shipped, and the bundle says why. Until then an earlier export there stays as it was.

    Args:
        result_or_adapted: what `train`, `adapt` or `load_model` gave, or an `nn.Module`. It is left as it was.
        formats: names of `utils.export.exporter.FORMATS`.
        out: the folder; made where absent.
        tokenizer: the model's tokenizer; a training result brings its own.
        config: limits that the model does not tell itself, e.g. {"max_seq_len": 512}.
        validation_text: text of the kind that the model is used on (needs a tokenizer): bits per byte are compared on it,
            and int8 is calibrated and judged with it.
        progress: called with (done, total, note).

    Raises:
        ConfigError: an unknown format, an unknown limit, or an `out` that cannot be used.
        MissingPackageError: a format's packages are not installed.
        ExportError: no format was left. ParityError, a kind of it: the only one is not equal to the model.

    Example:
        >>> bundle = utils.export(result, formats=("onnx",), out="exports/run")
        >>> bundle.parity.passed, bundle["onnx"].run(input_ids=[[1, 2, 3]]).shape
    """
    exporters = _exporters(formats)
    folder = Path(out)
    _check_folder(folder)
    subject = subject_of(result_or_adapted, tokenizer=tokenizer, config=config)
    subject = replace(subject, samples=samples_of(subject, validation_text))
    with staging_folder(folder) as staging, ChildRuntime() as child:
        staged, refused = _staged(exporters, subject, staging, child, progress or ignore_progress)
        _make_room(folder, [entry.name for artifact in staged for entry in artifact.path.parent.iterdir()])
        artifacts = tuple(publish(artifact, folder) for artifact in staged)
    parity = ParityReport.joined([artifact.parity for artifact in artifacts if artifact.parity is not None])
    manifest = _manifest(folder, subject, artifacts, parity, refused)
    write_json(folder / MANIFEST, manifest)
    files = tuple(file for artifact in artifacts for file in artifact.files)
    return Bundle(folder, artifacts, parity, (*files, folder / MANIFEST), manifest, refused)


def _staged(
    exporters: Sequence[Exporter],
    subject: ExportSubject,
    staging: Path,
    child: ChildRuntime,
    progress: ProgressCallback,
) -> tuple[list[Artifact], dict[str, str]]:
    """The formats that were proven, and why the others were not."""
    staged: list[Artifact] = []
    errors: dict[str, ExportError] = {}
    for exporter in exporters:
        folder = staging / exporter.format
        try:
            staged.append(exporter.stage(subject, folder, child, progress=progress))
        except ExportError as error:
            errors[exporter.format] = error
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning("%s is not shipped: %s", exporter.format, _reason(error))
    if not staged and len(errors) == 1:
        raise next(iter(errors.values()))
    if not staged:
        told = "\n".join(f"{name}: {_reason(error)}" for name, error in errors.items())
        raise ExportError(f"No format of {subject.name!r} could be proven.\n{told}")
    return staged, {name: _reason(error) for name, error in errors.items()}


def _reason(error: ExportError) -> str:
    """Why a format is not there, without the table that a `ParityError` shows."""
    return str(error).splitlines()[0] if isinstance(error, ParityError) else str(error)


def _exporters(formats: Sequence[str]) -> list[Exporter]:
    """One exporter for each format; every name and package is checked before any work begins."""
    names = [formats] if isinstance(formats, str) else list(dict.fromkeys(formats))
    if not names:
        raise ConfigError('formats is empty; name at least one, for example formats=("onnx",).')
    return [exporter_for(name) for name in names]


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={str(folder)!r} is a file; name a folder.")
    if (folder / MANIFEST).exists() and _own_manifest(folder) is None:
        raise ConfigError(
            f"{folder / MANIFEST} was written by something else and would be overwritten; choose another out=."
        )


def _own_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest that an earlier export left here; None where there is none of ours."""
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("kind") == _KIND else None


def _make_room(folder: Path, names: Sequence[str]) -> None:
    """Void the old manifest, and set aside files of the same names that it does not list: they are somebody else's."""
    manifest = _own_manifest(folder)
    listed = {str(entry.get("name")).split("/")[0] for entry in (manifest or {}).get("files", [])}
    if manifest is not None:
        (folder / MANIFEST).unlink()
    for torn in folder.glob(f".{MANIFEST}.*.tmp"):  # of an export that was killed while it wrote its manifest
        torn.unlink()
    for name in names:
        if (folder / name).exists() and name not in listed:
            kept = _free_name(folder / f"{name}.previous")
            os.rename(folder / name, kept)
            logger.warning("%s was not written by an export listed here; it is kept as %s", folder / name, kept.name)


def _free_name(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _manifest(
    folder: Path,
    subject: ExportSubject,
    artifacts: Sequence[Artifact],
    parity: ParityReport,
    refused: dict[str, str],
) -> dict[str, Any]:
    files = [
        {
            "name": file.relative_to(folder).as_posix(),
            "format": artifact.format,
            "bytes": file.stat().st_size,
            "sha256": sha256_of(file),
        }
        for artifact in artifacts
        for file in artifact.files
    ]
    head = {"kind": _KIND, "format_version": FORMAT_VERSION, "written_by": f"{PRODUCER} {utils.__version__}"}
    formats = {artifact.format: {"file": artifact.path.name, **artifact.facts} for artifact in artifacts}
    tail = {"formats": formats, "refused": refused, "files": files, "parity": parity.to_dict()}
    return {**head, "model": subject.facts, **tail}
