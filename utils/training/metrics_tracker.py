"""Metrics of epochs, for anybody's own loop: a CSV file always, Weights & Biases and TensorBoard where wanted.

Needs no trainer of ours. Leaves how W&B and TensorBoard are reached to `tracking`.
"""

from __future__ import annotations

import csv
import datetime
import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from utils._files import write_json
from utils.errors import ConfigError
from utils.training.engine.metrics import perplexity
from utils.training.run_folder import write_csv
from utils.training.tracking import STEP, USUAL_PROJECT, Destination, Sink

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

METRICS_FILE, STATE_FILE = "metrics.csv", "tracker.json"
FIRST_COLUMNS = ("epoch", "train/loss", "val/loss", "val/perplexity")
LAST_COLUMNS = ("learning_rate", "gradient_norm", "epoch_duration")
FORMAT_VERSION = 1


class MetricsTracker:
    """Keeps what each epoch measured.

    The CSV file is written whole after each epoch, so a killed process loses nothing that was logged. A tracker on the folder
    of an earlier one continues it: in the file, and on W&B in the same run; an epoch that is logged again replaces the old row.

    Args:
        use_wandb: also log to Weights & Biases: online where a key exists, else offline. It never asks for a login.
        project: name of the W&B project.
        folder: where everything goes; None makes `runs/metrics_<time>`.
        run_name: name of the run on W&B; None takes the folder's name.
        config: settings to show on W&B; plain values.
        tensorboard: also write event files.

    Example:
        >>> tracker = MetricsTracker(use_wandb=False)
        >>> tracker.log_epoch(epoch=0, train_metrics={"loss": 2.0}, val_metrics={"loss": 2.1}, learning_rate=1e-4)
        >>> tracker.get_summary()
    """

    def __init__(
        self,
        use_wandb: bool = True,
        project: str = USUAL_PROJECT,
        folder: str | Path | None = None,
        run_name: str | None = None,
        config: Mapping[str, Any] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.folder = _new_folder() if folder is None else Path(folder).expanduser()
        destination = Destination(
            self.folder,
            _run_id(self.folder),
            project if use_wandb else None,
            tensorboard,
            run_name or self.folder.name,
            config=config or {},
        )
        destination.check()
        self._rows: dict[int, dict[str, float]] = _read_rows(self.path)
        write_json(self.folder / STATE_FILE, {"format_version": FORMAT_VERSION, "run_id": destination.run_id})
        self._sinks: list[Sink] = destination.open(first_step=max(self._rows, default=-1) + 1)

    @property
    def path(self) -> Path:
        """The CSV file."""
        return self.folder / METRICS_FILE

    def log_epoch(
        self,
        epoch: int,
        train_metrics: Mapping[str, Any],
        val_metrics: Mapping[str, Any] | None = None,
        learning_rate: float | None = None,
        gradient_norm: float | None = None,
        epoch_duration: float | None = None,
    ) -> None:
        """Keep one epoch.

        Args:
            epoch: its number, from 0.
            train_metrics: name → number, or a tensor of one.
            val_metrics: the same, of the validation; its "loss" in nats per token also gives the perplexity.
            learning_rate: at the end of the epoch.
            gradient_norm: L2 norm of all gradients together.
            epoch_duration: seconds.

        Raises:
            ConfigError: an epoch that is no whole number of 0 or more, or a metric that is no number.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ConfigError(f"epoch={epoch!r}: expected a whole number of 0 or more.")
        row: dict[str, float] = {}
        for part, metrics in (("train", train_metrics), ("val", val_metrics or {})):
            row |= {f"{part}/{name}": _number(f"{part}/{name}", value) for name, value in metrics.items()}
        if "val/loss" in row:
            row.setdefault("val/perplexity", perplexity(row["val/loss"]))
        others = {"learning_rate": learning_rate, "gradient_norm": gradient_norm, "epoch_duration": epoch_duration}
        row |= {name: _number(name, value) for name, value in others.items() if value is not None}
        self._rows[epoch] = row
        self._write()
        for sink in self._sinks:
            sink.log([{STEP: epoch, "epoch": epoch, **row}])

    def get_summary(self) -> pd.DataFrame:
        """One row per epoch, in order; the columns are epoch, losses, perplexity, other metrics, learning rate and so on."""
        import pandas as pd

        return pd.DataFrame(self._table(), columns=self._columns())

    def finish(self) -> None:
        """End the run on W&B and close TensorBoard's files; the CSV file is complete at any time."""
        for sink in self._sinks:
            sink.finish()
        self._sinks = []

    def __enter__(self) -> MetricsTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.finish(succeeded=kind is None)
        self._sinks = []

    def _columns(self) -> list[str]:
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        first = [name for name in FIRST_COLUMNS if name == "epoch" or name in names]
        last = [name for name in LAST_COLUMNS if name in names]
        return [*first, *sorted(name for name in names if name not in (*first, *last)), *last]

    def _table(self) -> list[list[float | None]]:
        names = self._columns()[1:]
        return [[epoch, *(row.get(name) for name in names)] for epoch, row in sorted(self._rows.items())]

    def _write(self) -> None:
        write_csv(self.path, self._columns(), self._table())


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several elements
        raise ConfigError(f"{name} must be a number or a tensor of one; got {type(value).__name__}.") from error


def _new_folder() -> Path:
    """A folder that no other tracker has."""
    name = f"metrics_{datetime.datetime.now():%Y%m%d_%H%M%S}"
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _run_id(folder: Path) -> str:
    """The id that an earlier tracker left in the folder, or a new one."""
    try:
        found = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["run_id"]
    except FileNotFoundError:
        return uuid.uuid4().hex
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / STATE_FILE} is no file of a MetricsTracker ({error}). Choose another folder."
        ) from error
    return str(found)


def _read_rows(path: Path) -> dict[int, dict[str, float]]:
    """What an earlier tracker wrote; a file of somebody else is refused rather than replaced."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            int(row["epoch"]): {name: float(cell) for name, cell in row.items() if name != "epoch" and cell}
            for row in rows
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is there and was not written by a MetricsTracker ({type(error).__name__}: {error}). Choose another folder."
        ) from error
