"""The export folder: proven files and a manifest that lists them, written last. The verb `utils.export` lives here.

Leaves making a file to its exporter and judging it to `parity`. A folder without manifest is not finished; what somebody
else put into it stays.
"""

from __future__ import annotations

import datetime
import html
import logging
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import utils
from utils._files import sha256_of, sync_folder, whole_file, write_json
from utils._tables import html_table, text_table
from utils.errors import ConfigError, ExportError, ParityError, TransformerBuilderError
from utils.export.artifact import Artifact
from utils.export.child import ChildRuntime
from utils.export.export_folder import KIND, check_file, check_folder, free_name, make_room, publishing
from utils.export.exporter import PRODUCER, Exporter, exporter_for, failures_told, publish, staging_folder
from utils.export.formats import MANIFEST
from utils.export.golden import MAIN_FILE as ONNX_FILE
from utils.export.model_card import CARD_FILE, CARD_FILES, CardInputs, write_model_card
from utils.export.parity import ParityReport
from utils.export.runtime_files import TOLERANCE as RUNTIME_TOLERANCE
from utils.export.runtime_files import write_runtime
from utils.export.samples import samples_of
from utils.export.subject import ExportSubject, adapted_of, subject_of, undisturbed
from utils.progress import ProgressCallback, ignore_progress
from utils.training.result import TrainingResult
from utils.training.run_manifest import validation_text_of
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_COLUMNS = ("file", "format", "size", "SHA-256")


@dataclass(repr=False)
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
    manifest: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, format_name: str) -> Artifact:
        for artifact in self.artifacts:
            if artifact.format == format_name:
                return artifact
        if format_name in self.refused:
            raise KeyError(f"{format_name!r} was refused: {self.refused[format_name]}")
        raise KeyError(f"{format_name!r} was not exported; there is {', '.join(a.format for a in self.artifacts)}")

    def zip(self, path: str | Path | None = None) -> Path:
        """Pack the listed files into one file, completely or not at all.

        Args:
            path: of the file; None takes the folder's name with the ending .zip, beside the folder.

        Raises:
            ConfigError: no new file can be at that path, or a file of this export was changed or lost since it was proven.
        """
        whole = self.out.resolve()
        target = check_file(path, "path") if path is not None else whole.with_name(f"{whole.name}.zip")
        if target.is_dir():
            raise ConfigError(
                f"zip() writes one file, and {target} is a folder; name the file, such as {target / 'run.zip'}."
            )
        if target.resolve() in {file.resolve() for file in self.files}:
            raise ConfigError(f"zip() would write over {target}, which is one of the files to pack; name another.")
        for entry in self.manifest["files"]:
            file = self.out / entry["name"]
            if not file.is_file() or sha256_of(file) != entry["sha256"]:
                raise ConfigError(f"{file} was changed or lost since it was exported and proven. Export anew.")
        with whole_file(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in self.files:
                archive.write(file, file.relative_to(self.out))
        return target

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

    __repr__ = summary

    def _repr_html_(self) -> str:
        head = f"<h4>Exported to {html.escape(str(self.out))}</h4>"
        refused = "".join(
            f"<p><b>{html.escape(name)}</b> was refused: {html.escape(why.splitlines()[0])}</p>"
            for name, why in self.refused.items()
        )
        rows = self._rows()
        files = f"<details><summary>{len(rows)} files</summary>{html_table(_COLUMNS, rows)}</details>"
        return head + refused + self.parity._repr_html_() + files


def export(
    result_or_adapted: object,
    formats: Sequence[str] = ("onnx",),
    out: str | Path = "exports/run",
    *,
    tokenizer: object = None,
    config: object = None,
    validation_text: str | None = None,
    runtime: bool = True,
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
            and int8 is calibrated and judged with it. None takes the validation text of a training run, where that
            was bundled or lies in a file here.
        runtime: write beside model.onnx what makes the folder run without this package and without torch: scripts,
            tokenizer, a server, golden requests and the self-test that proves it. Where that is impossible (a model of text
            without its tokenizer), `refused["runtime"]` says why.
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
    folder = check_folder(out)
    subject = subject_of(result_or_adapted, tokenizer=tokenizer, config=config)
    if validation_text is None and subject.tokenizer is not None and isinstance(result_or_adapted, TrainingResult):
        validation_text = validation_text_of(result_or_adapted)
    if validation_text is not None or any(exporter.tolerance.cost is not None for exporter in exporters):
        subject = replace(subject, samples=samples_of(subject, validation_text))
    with staging_folder(folder) as staging, ChildRuntime() as child:
        staged, entries, refused = _staged(exporters, subject, staging, child, progress or ignore_progress)
        parity = ParityReport.joined([artifact.parity for artifact in staged if artifact.parity is not None])
        if runtime:
            entries |= _runtime(subject, staged, staging / "runtime", refused)
        inputs = CardInputs(
            subject.adapted,
            config,
            subject.tokenizer,
            result=result_or_adapted if isinstance(result_or_adapted, TrainingResult) else None,
            parity=parity,
            refused=refused,
            files={artifact.format: artifact.path.name for artifact in staged},
            labels=subject.labels or None,
        )
        entries |= _card(inputs, staged, staging / "card", refused)
        beside = [entry for name in ("runtime", "card") for entry in _inside(staging / name)]
        manifest = _manifest(subject, staged, entries, parity, refused)
        listing = write_json(
            staging / MANIFEST, manifest
        )  # while the earlier export is whole: a full disk costs it nothing
        artifacts = _published(folder, staged, beside, listing)
    files = tuple(folder / name for name in entries)
    return Bundle(folder, artifacts, parity, (*files, folder / MANIFEST), manifest, refused)


def _published(folder: Path, staged: Sequence[Artifact], beside: Sequence[Path], listing: Path) -> tuple[Artifact, ...]:
    """Move artifacts, what lies beside them, and at last the manifest from staging into the folder."""
    with publishing(folder):
        make_room(folder, [entry.name for entry in [*(e for a in staged for e in _inside(a.path.parent)), *beside]])
        artifacts = tuple(publish(artifact, folder) for artifact in staged)
        for entry in beside:
            os.replace(entry, folder / entry.name)
        sync_folder(folder)
        os.replace(listing, folder / MANIFEST)
        sync_folder(folder)
    return artifacts


Entries = dict[str, dict[str, Any]]
"""Name → its line in the manifest, made while the file lay in staging: what is listed is what was proven."""


def _inside(folder: Path) -> list[Path]:
    """What lies right inside a folder; nothing where it was not made."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _runtime(subject: ExportSubject, staged: Sequence[Artifact], folder: Path, refused: dict[str, str]) -> Entries:
    """What makes model.onnx run alone; the reason goes into `refused` where that cannot be."""
    tolerances = {artifact.path.name: _everywhere(artifact) for artifact in staged if artifact.path.suffix == ".onnx"}
    if ONNX_FILE not in tolerances:
        return {}
    folder.mkdir()
    try:
        with undisturbed(subject.adapted):
            files = write_runtime(
                folder,
                subject.signature,
                subject.tokenizer,
                subject.logits,
                subject.facts,
                class_names=subject.labels,
                tolerances=tolerances,
            )
    except TransformerBuilderError as error:  # the formats are proven without it
        shutil.rmtree(folder)
        refused["runtime"] = str(error)
        logger.warning("the folder does not run alone: %s", error)
        return {}
    return _listed("runtime", folder, files)


def _everywhere(artifact: Artifact) -> float:
    """How far a file's logits may be from the model's on any machine: other processors sum and round in another order."""
    parity = artifact.parity
    assert parity is not None
    if math.isfinite(parity.tolerance):
        return max(RUNTIME_TOLERANCE, 10 * max(row.tolerance for row in parity.rows))
    return 3 * parity.max_abs_diff


def _card(inputs: CardInputs, staged: Sequence[Artifact], folder: Path, refused: dict[str, str]) -> Entries:
    """The model card with its pictures; a folder for transformers gets one of its own."""
    folder.mkdir()
    try:
        write_model_card(inputs, folder / CARD_FILE)
    except TransformerBuilderError as error:  # the formats are proven without it
        shutil.rmtree(folder)
        refused["card"] = str(error)
        logger.warning("no model card: %s", error)
        return {}
    entries = _listed("card", folder, _inside(folder))
    for artifact in staged:
        if artifact.format == "hf":  # that folder travels alone: its own card tells as much
            write_model_card(replace(inputs, files={"hf": "."}), artifact.path / CARD_FILE)
            cards = [artifact.path / name for name in CARD_FILES if (artifact.path / name).is_file()]
            artifact.files = (*(file for file in artifact.files if file not in cards), *cards)
            entries |= _listed("hf", artifact.path.parent, cards)
    return entries


def create_export_bundle(
    model: object,
    config: object = None,
    task_spec: object = None,
    training_config: TrainingConfig | Mapping[str, Any] | None = None,
    export_base_dir: str | Path = "exports",
    *,
    tokenizer: object = None,
    formats: Sequence[str] | None = None,
    validation_text: str | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Export into a new folder named by the time; the same as `export` for those who hold a model and its settings.

    Args:
        model: what `train`, `adapt` or `load_model` gave, or an `nn.Module`.
        config: limits that the model does not tell itself.
        task_spec: the task that the model must be for, where one is given.
        training_config: its `export_formats` count where `formats` is None, its `run_name` names the folder.
        export_base_dir: folder in which the new one is made.
        tokenizer: the model's tokenizer; a training result brings its own.
        formats: names of formats; None takes those of the settings, else "onnx".
        validation_text: as for `export`.
        progress: as for `export`.

    Returns:
        The folder.

    Raises:
        ConfigError: the model is for another task, or the name of the run is no name of a folder. Others as `export`.
    """
    settings = training_config.to_dict() if isinstance(training_config, TrainingConfig) else training_config or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"training_config is a TrainingConfig or a mapping; got {type(settings).__name__}.")
    adapted = adapted_of(model, config)
    wanted = getattr(task_spec, "task", None)
    if wanted is not None and wanted != adapted.contract.task:
        raise ConfigError(f"task_spec is for {wanted!r}, and {adapted.name} is a {adapted.contract.task!r} model.")
    name = str(settings.get("run_name") or f"export-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if PurePath(name).name != name or name == "..":
        raise ConfigError(f"run_name={name!r} names no folder inside {export_base_dir}; use one name, without slashes.")
    chosen = formats if formats is not None else settings.get("export_formats") or ("onnx",)
    given = model if hasattr(model, "run_folder") else adapted
    return export(
        given,
        chosen,
        free_name(Path(export_base_dir) / name),
        tokenizer=tokenizer,
        config=config,
        validation_text=validation_text,
        progress=progress,
    ).out


def _staged(
    exporters: Sequence[Exporter],
    subject: ExportSubject,
    staging: Path,
    child: ChildRuntime,
    progress: ProgressCallback,
) -> tuple[list[Artifact], Entries, dict[str, str]]:
    """The formats that were proven, what the manifest says of their files, and why the others were not."""
    staged: list[Artifact] = []
    entries: Entries = {}
    errors: dict[str, ExportError] = {}
    for exporter in exporters:
        folder = staging / exporter.format
        try:
            with failures_told(exporter.format, subject):
                artifact = exporter.stage(subject, folder, child, progress=progress)
                entries |= _listed(artifact.format, folder, artifact.files)
            staged.append(artifact)
        except ExportError as error:
            errors[exporter.format] = error
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning("%s is not shipped: %s", exporter.format, _reason(error, staging))
            logger.debug("%s is not shipped", exporter.format, exc_info=True)
    if not staged and len(errors) == 1:
        raise next(iter(errors.values()))
    if not staged:
        told = "\n".join(f"{name}: {_reason(error, staging)}" for name, error in errors.items())
        raise ExportError(f"No format of {subject.name!r} could be proven.\n{told}")
    return staged, entries, {name: _reason(error, staging) for name, error in errors.items()}


def _reason(error: ExportError, staging: Path) -> str:
    """Why a format is not there: without the table that a `ParityError` shows, and without paths of this machine."""
    told = str(error).splitlines()[0] if isinstance(error, ParityError) else str(error)
    return told.replace(f"{staging}{os.sep}", "")


def _exporters(formats: Sequence[str]) -> list[Exporter]:
    """One exporter for each format; every name and package is checked before any work begins."""
    names = [formats] if isinstance(formats, str) else list(formats) if isinstance(formats, Iterable) else [formats]
    names = list(dict.fromkeys(name if isinstance(name, str) else repr(name) for name in names))
    if not names:
        raise ConfigError('formats is empty; name at least one, for example formats=("onnx",).')
    return [exporter_for(name) for name in names]


def _listed(kind: str, root: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Entries of the manifest, by name, for files as they lie in staging."""
    names = [file.relative_to(root).as_posix() for file in files]
    return {
        name: {"name": name, "format": kind, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for name, file in zip(names, files)
    }


def _manifest(
    subject: ExportSubject,
    artifacts: Sequence[Artifact],
    entries: Entries,
    parity: ParityReport,
    refused: dict[str, str],
) -> dict[str, Any]:
    head = {"kind": KIND, "format_version": FORMAT_VERSION, "written_by": f"{PRODUCER} {utils.__version__}"}
    formats = {artifact.format: {"file": artifact.path.name, **artifact.facts} for artifact in artifacts}
    tail = {"formats": formats, "refused": refused, "files": [*entries.values()], "parity": parity.to_dict()}
    return {**head, "model": subject.facts, **tail}
