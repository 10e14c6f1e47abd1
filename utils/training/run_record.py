"""What a run's folder says about it, as one row of plain values. Reads; leaves keeping rows to `run_index`.

Everything is derived from the files of the folder, so that a folder that was copied in says the same as where it was made.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, TrainingError
from utils.training.dashboard import Column, RunHistory
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.run_folder import MANIFEST_FILE
from utils.training.run_manifest import RECIPE_FILE
from utils.training.run_mirror import RUN_FILE

logger = logging.getLogger(__name__)

CONFIG_FILE, CHECKPOINTS = "config.json", "checkpoints"
WATCHED = (RUN_FILE, ".", CONFIG_FILE, RECIPE_FILE, MANIFEST_FILE, "metrics.csv", "resources.csv", CHECKPOINTS)
"""What a row is read from; while none of it changes, the row holds."""


@dataclass(frozen=True)
class RunRecord:
    """One run, as it lies in its folder.

    Attributes:
        name: of the folder. run_id: of the run. begun: UTC time in ISO form; empty where the folder does not say.
        model, parameters: what is trained; data: on what.
        steps: optimizer steps done; total_steps: those of the whole run. finished: whether it came to its end.
        train_loss: newest, nats per label. val_loss: lowest of the validations, nats per label.
        bits_per_byte: lowest of the validations; best_step: at which step that (else the lowest loss) was. None where it has none.
        tokens_per_second: over the whole training. memory_bytes: most that was in use. seconds: of training.
        checkpoints: how many; bytes: of all files in the folder.
        data_hash: of the training and validation samples. settings: of the run, as JSON. notes: of the person.
    """

    name: str
    run_id: str
    begun: str = ""
    model: str = ""
    parameters: int | None = None
    data: str = ""
    steps: int = 0
    total_steps: int | None = None
    finished: bool = False
    train_loss: float | None = None
    val_loss: float | None = None
    bits_per_byte: float | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    checkpoints: int = 0
    bytes: int = 0
    data_hash: str = ""
    settings: str = "{}"
    notes: str = ""

    @property
    def steps_of_total(self) -> str:
        """Steps done, and of how many where that is known, for a table."""
        return f"{self.steps:,}" if self.total_steps is None else f"{self.steps:,} / {self.total_steps:,}"

    @classmethod
    def of_folder(cls, folder: Path) -> RunRecord:
        """Read a run's folder, finished or not.

        Raises:
            TrainingError: it is no folder of a run, or its files cannot be read.

        Example:
            >>> RunRecord.of_folder(Path("runs/first")).bits_per_byte
        """
        try:
            return cls(**_values_of(folder))
        except (OSError, ValueError, RecursionError, csv.Error, ConfigError) as error:
            raise TrainingError(f"The run in {folder} cannot be read: {error}") from error


COLUMNS = tuple(field.name for field in dataclasses.fields(RunRecord))
"""Names of a row's values, in order."""


def stamp_of(folder: Path) -> str:
    """What changes with the files that a row is read from; empty where the folder holds no run."""
    marks = []
    for name in WATCHED:
        try:
            found = (folder / name).stat()
        except OSError:
            marks.append("-")
        else:
            marks.append(f"{found.st_mtime_ns}:{found.st_size}:{found.st_ino}")
    return "" if marks[0] == "-" else " ".join(marks)


def _values_of(folder: Path) -> dict[str, Any]:
    run = _json(folder / RUN_FILE)
    if not isinstance(run.get("run_id"), str):
        raise ConfigError(f"there is no readable {RUN_FILE} in it.")
    recipe, manifest, config = (_json(folder / name) for name in (RECIPE_FILE, MANIFEST_FILE, CONFIG_FILE))
    fingerprint, model, data = _part(run, "fingerprint"), _part(recipe, "model"), _part(recipe, "data")
    store = store_of(folder, run["run_id"])
    generations = [] if store is None else store.generations()
    return {
        "name": folder.name,
        "run_id": run["run_id"],
        "begun": _text(recipe.get("begun")),
        "model": _text(model.get("name")),
        "parameters": _whole(model.get("parameters")),
        "data": _text(data.get("name") or Path(_text(data.get("path"))).name or data.get("type")),
        "total_steps": _whole(fingerprint.get("total_steps")),
        "finished": bool(manifest),
        "checkpoints": len(generations),
        "bytes": bytes_below(folder),
        "data_hash": _text(fingerprint.get("data")),
        "settings": json.dumps(config, sort_keys=True),
        "notes": _text(config.get("notes")),
        **_measured(folder, generations[0].step if generations else 0),
    }


def _measured(folder: Path, saved: int) -> dict[str, Any]:
    history = RunHistory.of_folder(folder)
    train, losses, bits = history["train/loss"], history["val/loss"], history["val/bits_per_byte"]
    place, _ = lowest(bits or losses)
    return {
        "steps": max(int(train.x[-1]) if train else 0, saved),
        "train_loss": train.y[-1] if train else None,
        "val_loss": lowest(losses)[1],
        "bits_per_byte": lowest(bits)[1],
        "best_step": place,
        "tokens_per_second": _speed(history["seconds"], history["tokens_per_second"]),
        "memory_bytes": int(max(history["memory_bytes"].y)) if history["memory_bytes"] else None,
        "seconds": history["seconds"].y[-1] if history["seconds"] else None,
    }


def lowest(column: Column) -> tuple[int | None, float | None]:
    """Step and value of the lowest value, the first where several are; None for a column without values."""
    if not column:
        return None, None
    place = min(range(len(column.y)), key=column.y.__getitem__)
    return int(column.x[place]), column.y[place]


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder; links count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:  # deleted while this was looking
            continue
    return total


def store_of(folder: Path, run_id: str) -> CheckpointStore | None:
    """The checkpoints of a run, for reading; None where it has no folder of them, which a store would make."""
    place = folder / CHECKPOINTS
    return CheckpointStore(place, run_id, tidy=False) if place.is_dir() else None


def _speed(seconds: Column, speeds: Column) -> float | None:
    """Mean of the samples' speeds, each by the time that it stands for."""
    begins = (0.0, *seconds.y)
    spans = [max(end - begin, 0.0) for begin, end in zip(begins, seconds.y)]
    total = sum(spans)
    if not total or len(spans) != len(speeds.y):
        return None
    return sum(span * speed for span, speed in zip(spans, speeds.y)) / total


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        logger.warning("%s is unreadable and left aside: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def number(value: float | None, digits: int = 3) -> str:
    """A value for a table; a dash where it was not measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def size(count: int | None) -> str:
    """Bytes for a table."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
