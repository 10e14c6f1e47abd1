"""One folder per run: which one to use, whether an earlier run continues there, and the manifest at the end.

Knows names, JSON and hashes; leaves checkpoints to `engine.checkpoint`, what a model is to `fingerprint`, and the lock to
`run_lock`.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils._files import sha256_of, write_json, write_text
from utils.errors import ConfigError, TrainingError
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.mirror_folder import FileSystem, mirror_path, require_mounted
from utils.training.run_lock import LOCK_FILE, FolderLock
from utils.training.run_mirror import RUN_FILE, MirroredRun, mirrored_runs, restore_run, top_up
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of run.json and manifest.json."""

RESOURCES_FILE = "resources.csv"
"""Where a run keeps its speed and memory over time."""

MANIFEST_FILE = "manifest.json"
"""Hashes of all files; its presence marks a run as finished."""

LEFT_FILE = ".left.json"
"""Hash of the weights with which the run left the model in memory: with them it may be continued, too."""

RESUMES = {
    "auto": "continue an interrupted run of the same model",
    "continue": "the same, from the run's own weights, whatever weights the model comes with",
    "never": "always begin anew",
}
"""Values of resume=, with their meaning."""

MODEL_PARTS = {
    "shapes": "the model has other parameters",
    "code": "the model's code differs",
    "contract": "the model is called in another way (its contract differs)",
    "weights": "the model starts from other weights",
}
"""Parts of a model's identity, with words for a difference."""

WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    {
        "notes",
        "checkpoint_dir",
        "run_name",
        "save_every_n_epochs",
        "save_every_n_steps",
        "save_every_n_minutes",
        "keep_checkpoints",
        "mirror_dir",
        "num_workers",
        "strategy",
        "devices",
        "fit_batch_to_memory",
        "vocab_size",
        "d_model",
        "num_layers",
        "export_bundle",
        "export_formats",
        "wandb_project",
        "tensorboard",
    }
)
"""Settings that may change between interruption and resume."""


@dataclass(frozen=True)
class RunFolder:
    """An opened run.

    Attributes:
        path: its folder; name: the folder's name; run_id: written into each checkpoint.
        continues: whether an earlier run is there; finished: whether that run came to its end.
        lock: keeps other trainings out until `leave`.
    """

    path: Path
    run_id: str
    continues: bool = False
    finished: bool = False
    lock: FolderLock | None = field(default=None, repr=False, compare=False)

    def leave(self, weights: str | None = None) -> None:
        """Let other trainings in, and keep the hash of the weights that the model in memory has now."""
        try:
            if weights is not None:
                write_json(self.path / LEFT_FILE, {"weights": weights})
        except OSError as error:  # what was trained must not be lost for a note
            logger.warning("%s cannot be written: %s", self.path / LEFT_FILE, error)
        finally:
            if self.lock is not None:
                self.lock.release()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def write_manifest(self, facts: Mapping[str, Any]) -> Path | None:
        """Write hashes and sizes of all files of the run; its presence marks the run as finished.

        Returns:
            The file; None where the disk refused it, which the log says: the result is not lost for that.
        """
        files = sorted(
            p for p in self.path.rglob("*") if p.is_file() and p.name != MANIFEST_FILE and not p.name.startswith(".")
        )
        listed = {
            p.relative_to(self.path).as_posix(): {"sha256": sha256_of(p), "size": p.stat().st_size} for p in files
        }
        values = {
            "format_version": FORMAT_VERSION,
            "run_id": self.run_id,
            "run_name": self.name,
            **facts,
            "files": listed,
        }
        try:
            return write_json(self.path / MANIFEST_FILE, values)
        except OSError as error:
            logger.warning(
                "%s cannot be written, so the run counts as unfinished: %s", self.path / MANIFEST_FILE, error
            )
            return None


def run_fingerprint(model: Mapping[str, str], data: str, config: TrainingConfig, total_steps: int) -> dict[str, Any]:
    """What must be equal so that an interrupted run may continue: model, data, settings.

    Args:
        model: what `fingerprint.model_identity` gave, before initialisation.
        data: hash of training and validation blocks (text, tokenizer and block length).
        config: settings; those in `WITHOUT_EFFECT_ON_WEIGHTS` are left out.
        total_steps: optimizer steps of the whole run.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in WITHOUT_EFFECT_ON_WEIGHTS}
    return {"model": dict(model), "data": data, "settings": settings, "total_steps": total_steps}


def open_run(
    workspace: str | Path,
    run_name: str | None,
    fingerprint: Mapping[str, Any],
    resume: str,
    mirror_dir: str | Path | None = None,
) -> RunFolder:
    """Find the run that continues, or make a folder for a new one; either way this process holds its lock afterwards.

    With resume="auto" a named run continues where it stopped; without a name the newest unfinished run of the workspace
    with the same model (code, contract, weights), data and settings does, unless another training holds it. The weights
    may be those that the run started from or those that it left. resume="continue" does not look at the weights: they come
    from the checkpoint. With resume="never" a new folder is made (`name-2` where `name` is taken).

    A run that is not in the workspace (a new machine) comes back from the mirror, and a run whose newest checkpoint there
    is newer than what verifies locally takes that one.

    Raises:
        TrainingError: the named run exists with another model, data or settings (the message lists what differs), or
            another training is using it, or the mirror cannot be read and the run is not in the workspace.
        ConfigError: the mirror lies on a Google Drive that is not mounted.
    """
    if resume not in RESUMES:
        listed = ", ".join(f"{name!r} ({meaning})" for name, meaning in RESUMES.items())
        raise ConfigError(f"resume={resume!r} is unknown. Known: {listed}.")
    root = Path(workspace)
    if mirror_dir is not None:
        require_mounted(mirror_path(mirror_dir), FileSystem())
    if resume == "never":
        return _new_run(root, run_name or _time_name(), fingerprint)
    if run_name is None:
        found = _newest_unfinished(root, fingerprint, resume)
        if found is None and _restored_unfinished(root, fingerprint, resume, mirror_dir):
            found = _newest_unfinished(root, fingerprint, resume)
        run = found if found is not None else _new_run(root, _time_name(), fingerprint)
    else:
        _restored_named(root / run_name, fingerprint, resume, mirror_dir)
        run = _named_run(root / run_name, fingerprint, resume)
    try:
        _remove_temporaries(run.path)
        if mirror_dir is not None and run.continues:
            top_up(CheckpointStore(run.checkpoints, run.run_id), run.name, mirror_dir)
    except BaseException:
        run.leave()
        raise
    return run


def open_experiment(path: Path, mirror_dir: str | Path | None, files: FileSystem | None = None) -> str:
    """The run id of a folder of checkpoints that no fingerprint guards: the folder's own, the mirror's, or a new one.

    Raises:
        TrainingError: the folder holds something else, or it is not there and the mirror cannot be read.
        ConfigError: the mirror lies on a Google Drive that is not mounted.
    """
    if mirror_dir is not None and _is_free(path):
        runs = [run for run in mirrored_runs(mirror_dir, files) if run.name == path.name]
        newest = max(runs, key=lambda run: run.commits[0].step, default=None)
        if newest is not None:
            restore_run(newest, path.parent)
    known = _read_run(path)
    if known is None:
        _refuse_foreign(path)
        path.mkdir(parents=True, exist_ok=True)
        known = {"format_version": FORMAT_VERSION, "run_id": uuid.uuid4().hex, "fingerprint": {}}
        write_json(path / RUN_FILE, known)
    return str(known["run_id"])


def lock_experiment(path: Path) -> None:
    """Keep other processes out of a folder of checkpoints until this one ends; once it is held, a second call does nothing.

    Raises:
        TrainingError: another process uses it.
    """
    place = path.resolve()
    if place not in _EXPERIMENTS:
        _EXPERIMENTS[place] = _locked(place)


_EXPERIMENTS: dict[Path, FolderLock] = {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words."""
    before, after = old.get("model"), new["model"]
    before = before if isinstance(before, dict) else {}
    found = [words for part, words in MODEL_PARTS.items() if before.get(part) != after.get(part)]
    if MODEL_PARTS["shapes"] in found:
        found = [words for words in found if words != MODEL_PARTS["weights"]]  # goes without saying
    if old.get("data") != new["data"]:
        found.append("text, tokenizer or block length differ")
    usual = TrainingConfig().to_dict()  # of settings that an older release did not have
    earlier, later = {**usual, **old.get("settings", {})}, {**usual, **new["settings"]}
    for name in sorted({*earlier, *later}):
        if earlier.get(name) != later.get(name):
            found.append(f"{name}: {earlier.get(name)!r} → {later.get(name)!r}")
    if not found and old.get("total_steps") != new["total_steps"]:
        found.append(f"optimizer steps: {old.get('total_steps')} → {new['total_steps']}")
    return found


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, completely or not at all; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    write_text(path, text.getvalue())


def _restored_unfinished(
    root: Path, fingerprint: Mapping[str, Any], resume: str, mirror_dir: str | Path | None
) -> bool:
    """Whether an unfinished run of the same kind came from the mirror."""
    for run in mirrored_runs(mirror_dir) if mirror_dir is not None else ():
        path = root / run.name
        if not run.finished and not path.exists() and not _changes(path, run.run["fingerprint"], fingerprint, resume):
            return restore_run(run, root) is not None
    return False


def _restored_named(
    path: Path, fingerprint: Mapping[str, Any], resume: str, mirror_dir: str | Path | None
) -> Path | None:
    """The run of that name from the mirror, where the workspace has none; one that differs is refused before it is copied."""
    if mirror_dir is None or not _is_free(path):
        return None
    runs = [run for run in mirrored_runs(mirror_dir) if run.name == path.name]
    fitting = [run for run in runs if not _changes(path, run.run["fingerprint"], fingerprint, resume)]
    if runs and not fitting:
        _refuse_changes(path, _changes(path, runs[0].run["fingerprint"], fingerprint, resume))
    newest: MirroredRun | None = max(fitting, key=lambda run: run.commits[0].step, default=None)
    return None if newest is None else restore_run(newest, path.parent)


def _is_free(path: Path) -> bool:
    """Whether nothing is at a run's place; a folder in which a run never began is removed."""
    if not path.is_dir() or _holdings(path):
        return not path.exists()
    lock = FolderLock.acquire(path)
    if lock is None:
        return False
    shutil.rmtree(path)
    lock.release()
    return True


def _holdings(path: Path) -> set[str]:
    """What lies in a folder, besides the lock and what killed writes left."""
    names = {entry.name for entry in path.iterdir()} - {LOCK_FILE}
    return {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}


def _remove_temporaries(path: Path) -> None:
    """Delete what killed writes left beside the files of a run; this process holds the lock, so nobody is writing."""
    for file in [*path.glob(".*.tmp"), *path.glob("*/.*.tmp")]:
        if file.is_file() and not file.is_symlink():
            file.unlink(missing_ok=True)
    for folder in path.glob(".tokenizer.*"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _new_run(root: Path, name: str, fingerprint: Mapping[str, Any]) -> RunFolder:
    """A new folder, `name` or `name-2` and so on where it is taken: whoever makes the folder owns it."""
    number, free = 1, name
    while True:
        try:
            (root / free).mkdir(parents=True)
        except FileExistsError:
            number += 1
            free = f"{name}-{number}"
        else:
            return _begun(root / free, _locked(root / free), fingerprint)


def _named_run(path: Path, fingerprint: Mapping[str, Any], resume: str) -> RunFolder:
    if _read_run(path) is None:
        _refuse_foreign(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = _locked(path)
    try:
        known = _read_run(path)  # as it is now that nobody else writes
        if known is None:
            _refuse_foreign(path)
            return _begun(path, lock, fingerprint)
        _refuse_changes(path, _changes(path, known["fingerprint"], fingerprint, resume))
    except BaseException:
        lock.release()
        raise
    return RunFolder(path, known["run_id"], True, (path / MANIFEST_FILE).is_file(), lock)


def _begun(path: Path, lock: FolderLock, fingerprint: Mapping[str, Any]) -> RunFolder:
    run_id = uuid.uuid4().hex
    write_json(path / RUN_FILE, {"format_version": FORMAT_VERSION, "run_id": run_id, "fingerprint": dict(fingerprint)})
    return RunFolder(path, run_id, lock=lock)


def _locked(path: Path) -> FolderLock:
    lock = FolderLock.acquire(path)
    if lock is None:
        raise TrainingError(
            f"The run {path.name!r} in {path.parent} is being trained right now, by another process or notebook. Wait for its "
            "end, end it, or choose another run_name."
        )
    return lock


def _read_run(path: Path) -> dict[str, Any] | None:
    """run.json of a folder; None where there is none or it is unreadable."""
    file = path / RUN_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        logger.warning("%s is unreadable and left aside: %s", file, error)
        return None
    right = (
        isinstance(values, dict)
        and isinstance(values.get("run_id"), str)
        and isinstance(values.get("fingerprint"), dict)
    )
    return values if right else None


def _newest_unfinished(root: Path, fingerprint: Mapping[str, Any], resume: str) -> RunFolder | None:
    candidates = sorted(root.glob(f"*/{RUN_FILE}"), key=lambda file: file.parent.name, reverse=True)
    for folder in (file.parent for file in candidates):
        known = _read_run(folder)
        if known is None or (folder / MANIFEST_FILE).is_file():
            continue
        changed = _changes(folder, known["fingerprint"], fingerprint, resume)
        if changed:
            if changed == [MODEL_PARTS["weights"]]:
                logger.warning(
                    "the unfinished run %s is not continued, since the model starts from other weights. To go on from the "
                    "run's own weights pass run_name=%r, resume='continue'",
                    folder.name,
                    folder.name,
                )
            continue
        lock = FolderLock.acquire(folder)
        if lock is None:
            logger.info("the unfinished run %s is being trained by somebody else and left alone", folder.name)
        elif (folder / MANIFEST_FILE).is_file():  # it ended while we looked
            lock.release()
        else:
            return RunFolder(folder, known["run_id"], continues=True, lock=lock)
    return None


def _changes(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], resume: str) -> list[str]:
    """`differences`, without that of the weights where they may differ."""
    found = differences(old, new)
    if resume == "continue" or new["model"].get("weights") == _left_weights(path):
        found = [words for words in found if words != MODEL_PARTS["weights"]]
    return found


def _left_weights(path: Path) -> str | None:
    try:
        return str(json.loads((path / LEFT_FILE).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, KeyError, TypeError):  # none was left, or it is torn: then only the start counts
        return None


def _refuse_changes(path: Path, changed: Sequence[str]) -> None:
    if not changed:
        return
    listed = "\n".join(f"- {text}" for text in changed)
    only_weights = list(changed) == [MODEL_PARTS["weights"]]
    way = "pass resume='continue' to go on from the run's own weights" if only_weights else "put the old settings back"
    raise TrainingError(
        f"The run {path.name!r} in {path.parent} was begun differently and cannot continue:\n{listed}\n"
        f"Choose another run_name, {way}, or pass resume='never' to begin a new run beside it."
    )


def _refuse_foreign(path: Path) -> None:
    if path.exists() and (not path.is_dir() or _holdings(path)):
        raise TrainingError(
            f"{path} exists and is no run of this package (no readable {RUN_FILE}). Choose another run_name."
        )


def _time_name() -> str:
    return f"run_{datetime.datetime.now():%Y%m%d_%H%M%S}"
