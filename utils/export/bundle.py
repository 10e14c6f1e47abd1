"""The export folder: proven files and a manifest that lists them, written last. The verb `utils.export` lives here.

Leaves making a file to its exporter and judging it to `parity`. A folder without manifest is not finished; what somebody
else put into it stays.
"""

from __future__ import annotations

import html
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import utils
from utils._files import sha256_of, write_json
from utils._tables import html_table, text_table
from utils.errors import ConfigError
from utils.export.artifact import Artifact
from utils.export.exporter import Exporter, exporter_for, publish, staging_folder
from utils.export.parity import ParityReport
from utils.export.subject import ExportSubject, subject_of

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
        artifacts: one for each format, in the order asked for; `bundle["onnx"]` picks one.
        parity: the proof of all of them.
        files: every file that was written, the manifest last.
        manifest: the manifest's content.
    """

    out: Path
    artifacts: tuple[Artifact, ...]
    parity: ParityReport
    files: tuple[Path, ...]
    manifest: dict[str, Any] = field(repr=False, default_factory=dict)

    def __getitem__(self, format_name: str) -> Artifact:
        for artifact in self.artifacts:
            if artifact.format == format_name:
                return artifact
        raise KeyError(f"{format_name!r} was not exported; there is {', '.join(a.format for a in self.artifacts)}")

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (e["name"], e["format"], f"{e['bytes'] / 1e6:.2f} MB", e["sha256"][:16] + "…")
            for e in self.manifest["files"]
        ]

    def summary(self) -> str:
        """The files and the parity table as text."""
        files = text_table(_COLUMNS, self._rows(), title=f"Exported to {self.out}")
        return f"{files}\n\n{self.parity.summary()}"

    def _repr_html_(self) -> str:
        head = f"<h4>Exported to {html.escape(str(self.out))}</h4>"
        return head + html_table(_COLUMNS, self._rows()) + self.parity._repr_html_()


def export(
    result_or_adapted: object,
    formats: Sequence[str] = ("onnx",),
    out: str | Path = "exports/run",
    *,
    tokenizer: object = None,
    config: object = None,
    validation_text: str | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Bundle:
    """Write a model in each format, prove each file equal to the model, and list them in a manifest.

    All files are written and proven in a hidden folder inside `out` first. Only when every format passed do they move
    into place; until then an earlier export there stays as it was.

    Args:
        result_or_adapted: what `train`, `adapt` or `load_model` gave, or an `nn.Module`. It is left as it was.
        formats: names of `utils.export.exporter.FORMATS`.
        out: the folder; made where absent.
        tokenizer: the model's tokenizer; a training result brings its own.
        config: limits that the model does not tell itself, e.g. {"max_seq_len": 512}.
        validation_text: compare bits per byte on it too (needs a tokenizer).
        progress: called with (done, total, note).

    Raises:
        ConfigError: an unknown format, an unknown limit, or an `out` that cannot be used.
        MissingPackageError: a format's packages are not installed.
        ExportError: a format cannot hold the model. ParityError, a kind of it: its file is not equal to the model.

    Example:
        >>> bundle = utils.export(result, formats=("onnx",), out="exports/run")
        >>> bundle.parity.passed, bundle["onnx"].run(input_ids=[[1, 2, 3]]).shape
    """
    exporters = _exporters(formats)
    folder = Path(out)
    _check_folder(folder)
    subject = subject_of(result_or_adapted, tokenizer=tokenizer, config=config)
    with staging_folder(folder) as staging:
        staged = [
            exporter.stage(subject, staging, validation_text=validation_text, progress=progress)
            for exporter in exporters
        ]
        _make_room(folder, [file.name for artifact in staged for file in artifact.files])
        artifacts = tuple(publish(artifact, folder) for artifact in staged)
    parity = ParityReport.joined([artifact.parity for artifact in artifacts if artifact.parity is not None])
    manifest = _manifest(subject, artifacts, parity)
    write_json(folder / MANIFEST, manifest)
    files = tuple(file for artifact in artifacts for file in artifact.files)
    return Bundle(folder, artifacts, parity, (*files, folder / MANIFEST), manifest)


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
    listed = {entry.get("name") for entry in (manifest or {}).get("files", [])}
    if manifest is not None:
        (folder / MANIFEST).unlink()
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


def _manifest(subject: ExportSubject, artifacts: Sequence[Artifact], parity: ParityReport) -> dict[str, Any]:
    files = [
        {"name": file.name, "format": artifact.format, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for artifact in artifacts
        for file in artifact.files
    ]
    head = {
        "kind": _KIND,
        "format_version": FORMAT_VERSION,
        "written_by": f"transformer-builder-colab {utils.__version__}",
    }
    formats = {artifact.format: {"file": artifact.path.name, **artifact.facts} for artifact in artifacts}
    return {**head, "model": subject.facts, "formats": formats, "files": files, "parity": parity.to_dict()}
