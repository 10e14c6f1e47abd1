"""One folder per run: which one to use, whether an earlier run continues there, and the manifest at the end.

Knows names, JSON and hashes; leaves checkpoints to `engine.checkpoint`.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils._files import sha256_of, write_json, write_text
from utils.errors import ConfigError, TrainingError
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of run.json and manifest.json."""

RUN_FILE, MANIFEST_FILE = "run.json", "manifest.json"

WITHOUT_EFFECT_ON_WEIGHTS = frozenset(
    {
        "notes",
        "checkpoint_dir",
        "run_name",
        "save_every_n_epochs",
        "save_every_n_steps",
        "save_every_n_minutes",
        "keep_checkpoints",
    }
)
"""Settings that may change between interruption and resume."""


@dataclass(frozen=True)
class RunFolder:
    """An opened run.

    Attributes:
        path: its folder; name: the folder's name; run_id: written into each checkpoint.
        continues: whether an earlier run is there; finished: whether that run came to its end.
    """

    path: Path
    run_id: str
    continues: bool = False
    finished: bool = False

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def write_manifest(self, facts: Mapping[str, Any]) -> Path:
        """Write hashes and sizes of all files of the run; its presence marks the run as finished."""
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
        return write_json(self.path / MANIFEST_FILE, values)


def run_fingerprint(
    model_state: Iterable[tuple[str, Sequence[int]]], data: str, config: TrainingConfig, total_steps: int
) -> dict[str, Any]:
    """What must be equal so that an interrupted run may continue: parameter names and shapes, data, settings.

    Args:
        model_state: names and shapes of all parameters and buffers.
        data: hash of training and validation blocks (text, tokenizer and block length).
        config: settings; those in `WITHOUT_EFFECT_ON_WEIGHTS` are left out.
        total_steps: optimizer steps of the whole run.
    """
    shapes = json.dumps([[name, list(shape)] for name, shape in model_state])
    settings = {name: value for name, value in config.to_dict().items() if name not in WITHOUT_EFFECT_ON_WEIGHTS}
    return {
        "model": hashlib.sha256(shapes.encode()).hexdigest(),
        "data": data,
        "settings": settings,
        "total_steps": total_steps,
    }


def open_run(workspace: str | Path, run_name: str | None, fingerprint: Mapping[str, Any], resume: str) -> RunFolder:
    """Find the run that continues, or make a folder for a new one.

    With resume="auto" a named run continues where it stopped; without a name the newest unfinished run of the workspace
    with the same model, data and settings does. With resume="never" a new folder is made (`name-2` where `name` is taken).

    Raises:
        TrainingError: the named run exists with another model, data or settings; the message lists what differs.
    """
    if resume not in ("auto", "never"):
        raise ConfigError(
            f"resume={resume!r} is unknown. Known: 'auto' (continue an interrupted run), 'never' (always begin anew)."
        )
    root = Path(workspace)
    if resume == "never":
        return _new_run(root, _free_name(root, run_name or _time_name()), fingerprint)
    if run_name is None:
        found = _newest_unfinished(root, fingerprint)
        return found if found is not None else _new_run(root, _free_name(root, _time_name()), fingerprint)
    path = root / run_name
    known = _read_run(path)
    if known is None:
        _refuse_foreign(path)
        return _new_run(root, run_name, fingerprint)
    _refuse_changes(path, known["fingerprint"], fingerprint)
    return RunFolder(path, known["run_id"], continues=True, finished=(path / MANIFEST_FILE).is_file())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words."""
    found = []
    if old.get("model") != new["model"]:
        found.append("the model has other parameters")
    if old.get("data") != new["data"]:
        found.append("text, tokenizer or block length differ")
    before, after = old.get("settings", {}), new["settings"]
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            found.append(f"{name}: {before.get(name)!r} → {after.get(name)!r}")
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


def _new_run(root: Path, name: str, fingerprint: Mapping[str, Any]) -> RunFolder:
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    run_id = uuid.uuid4().hex
    write_json(path / RUN_FILE, {"format_version": FORMAT_VERSION, "run_id": run_id, "fingerprint": dict(fingerprint)})
    return RunFolder(path, run_id)


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


def _newest_unfinished(root: Path, fingerprint: Mapping[str, Any]) -> RunFolder | None:
    candidates = sorted(root.glob(f"*/{RUN_FILE}"), key=lambda file: file.parent.name, reverse=True)
    for file in candidates:
        known = _read_run(file.parent)
        if known is None or (file.parent / MANIFEST_FILE).is_file() or differences(known["fingerprint"], fingerprint):
            continue
        return RunFolder(file.parent, known["run_id"], continues=True)
    return None


def _refuse_changes(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = differences(old, new)
    if changed:
        listed = "\n".join(f"- {text}" for text in changed)
        raise TrainingError(
            f"The run {path.name!r} in {path.parent} was begun differently and cannot continue:\n{listed}\n"
            "Choose another run_name, put the old settings back, or pass resume='never' to begin a new run beside it."
        )


def _refuse_foreign(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise TrainingError(
            f"{path} exists and is no run of this package (no readable {RUN_FILE}). Choose another run_name."
        )


def _time_name() -> str:
    return f"run_{datetime.datetime.now():%Y%m%d_%H%M%S}"


def _free_name(root: Path, name: str) -> str:
    number, free = 1, name
    while (root / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free
