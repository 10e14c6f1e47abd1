"""One picture of a run: loss, perplexity and bits per byte, learning rate, gradient norm, speed and memory, drift.

Reads what a run's folder holds; what it lacks is shown as "not recorded". Measures nothing.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from utils._files import whole_file, write_text
from utils._pages import render
from utils._tables import text_table
from utils.errors import ConfigError
from utils.training.curves import Panel, Series, picture_png, picture_svg
from utils.training.drift_metrics import DRIFT_FILE, DriftMetrics
from utils.training.engine.metrics import perplexity
from utils.training.metrics_tracker import METRICS_FILE
from utils.training.run_folder import RESOURCES_FILE

logger = logging.getLogger(__name__)

NOT_RECORDED = "not recorded"
TEMPLATE = Path(__file__).with_name("templates") / "dashboard.html"
_SMOOTHED = 50
"""Points over which the training loss is averaged, at most."""


@dataclass(frozen=True)
class Column:
    """Values over the steps at which they were taken.

    Attributes:
        x: steps (or epochs). y: values, all finite.
    """

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.x)


@dataclass(frozen=True)
class RunHistory:
    """What a run measured, in plain numbers.

    Attributes:
        name: of the run. axis: what the steps are, "optimizer step" or "epoch".
        columns: name, as in metrics.csv and resources.csv → values.
        facts: (name, words) about the run.
        drift: of the validation data from the training data; None where nobody looked.
    """

    name: str
    axis: str = "optimizer step"
    columns: Mapping[str, Column] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    drift: DriftMetrics | None = None

    def __getitem__(self, name: str) -> Column:
        """Values of a column; empty where it was not recorded."""
        return self.columns.get(name, Column())

    @classmethod
    def of_folder(cls, folder: Path) -> RunHistory:
        """Read a run's folder, of this package's training or of a `MetricsTracker`; finished or not.

        Raises:
            ConfigError: there is no such folder, or no run in it.
        """
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder} to show a run from.")
        if not any((folder / name).is_file() for name in (METRICS_FILE, "run.json", "config.json")):
            raise ConfigError(f"{folder} is no folder of a run: it holds no {METRICS_FILE}, run.json or config.json.")
        axis, columns = _read_columns(folder / METRICS_FILE)
        more = _read_columns(folder / RESOURCES_FILE)[1]
        config, manifest = _read_json(folder / "config.json"), _read_json(folder / "manifest.json")
        shown = ("learning_rate", "batch_size", "gradient_accumulation_steps", "random_seed", "notes")
        facts = [(name.replace("_", " "), str(config[name])) for name in shown if config.get(name) not in (None, "")]
        facts += [(name, str(manifest[name])) for name in ("precision", "steps") if name in manifest]
        facts.append(("state", "finished" if manifest else "not finished, or never ended"))
        return cls(folder.name, axis, {**more, **columns}, facts, _read_drift(folder / DRIFT_FILE))

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> RunHistory:
        """From what a training gave: its folder, and where that is gone its own histories."""
        folder = Path(str(result["run_folder"]))
        if folder.is_dir():
            return cls.of_folder(folder)
        losses = result.get("step_loss_history", [])
        validated = result.get("val_steps", [])
        columns = {
            "train/loss": _column(range(1, len(losses) + 1), losses),
            "val/loss": _column(validated, result.get("val_loss_history", [])),
            "val/bits_per_byte": _column(validated, result.get("val_bits_per_byte_history", [])),
        }
        facts = [("state", "the run's folder is gone: shown is what the result itself holds")]
        return cls(str(result.get("run_name", folder.name)), columns=columns, facts=facts)


class Dashboard:
    """A run as panels.

    Args:
        source: a `TrainingResult`, any mapping with `run_folder`, or the folder of a run. A folder is read at once; make another
            dashboard to see what was written since.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> Dashboard(result).save_html("run.html")
    """

    def __init__(self, source: Mapping[str, Any] | str | Path) -> None:
        if isinstance(source, (str, Path)):
            self.history = RunHistory.of_folder(Path(source).expanduser())
        elif isinstance(source, Mapping) and "run_folder" in source:
            self.history = RunHistory.of_result(source)
        else:
            raise ConfigError(
                f"Dashboard takes a TrainingResult or the folder of a run; got {type(source).__name__} without run_folder."
            )

    def panels(self) -> list[Panel]:
        """Loss, perplexity and bits per byte, learning rate, gradient norm, speed and memory, drift."""
        axis = self.history.axis
        return [
            loss_panel(self.history["train/loss"], self.history["val/loss"], axis),
            self._quality(),
            self._single("learning_rate", "learning rate", ""),
            self._single("gradient_norm", "gradient norm", "L2, all gradients", logarithmic=True),
            self._resources(),
            self._drift(),
        ]

    def png(self) -> bytes:
        """The panels as a picture.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        return picture_png(self.panels())

    def html(self) -> str:
        """A page that needs nothing else, readable in dark and light."""
        return render(TEMPLATE, history=self.history, picture=Markup(picture_svg(self.panels())), rows=self._rows())

    def save_png(self, path: str | Path) -> Path:
        """Write the picture."""
        with whole_file(path) as file:
            file.write(self.png())
        return Path(path)

    def save_html(self, path: str | Path) -> Path:
        """Write the page."""
        return write_text(path, self.html())

    def summary(self) -> str:
        """First, best and last value of each panel as text."""
        return text_table(("", ""), self._rows(), title=self.history.name)

    __repr__ = summary

    def _repr_html_(self) -> str:
        return f'<div class="tb-dashboard">{picture_svg(self.panels())}</div>'

    def _rows(self) -> list[tuple[str, str]]:
        names = ("train/loss", "val/loss", "val/bits_per_byte", "gradient_norm", "tokens_per_second", "memory_bytes")
        rows = list(self.history.facts)
        for name in names:
            column = self.history[name]
            rows.append((name, _extent(column) if column else NOT_RECORDED))
        rows.append(("drift", NOT_RECORDED if self.history.drift is None else self.history.drift.verdict))
        return rows

    def _quality(self) -> Panel:
        history = self.history
        nats = history["val/perplexity"] or _mapped(history["val/loss"], perplexity)
        left = [Series("perplexity, validation", nats.x, nats.y, dots=True)] if nats else []
        right = [
            Series(f"bits per byte, {words}", history[name].x, history[name].y, dots=name.startswith("val"))
            for name, words in (("train/bits_per_byte", "training"), ("val/bits_per_byte", "validation"))
            if history[name]
        ]
        if not left and not right:
            return Panel("perplexity and bits per byte", missing=NOT_RECORDED)
        title = "perplexity and bits per byte" if right else "perplexity (bits per byte not recorded)"
        if not left:
            return Panel(title, history.axis, "bits per byte", right)
        return Panel(title, history.axis, "perplexity", left, right, "bits per byte", logarithmic=True)

    def _single(self, name: str, title: str, unit: str, logarithmic: bool = False) -> Panel:
        column = self.history[name]
        if not column:
            return Panel(title, missing=NOT_RECORDED)
        return Panel(title, self.history.axis, unit, [Series("", column.x, column.y)], logarithmic=logarithmic)

    def _resources(self) -> Panel:
        speed, memory = (
            self.history["tokens_per_second"],
            _mapped(self.history["memory_bytes"], lambda size: size / 2**30),
        )
        if not speed and not memory:
            return Panel("speed and memory", missing=NOT_RECORDED)
        left = [Series("tokens per second", speed.x, speed.y, dots=True)] if speed else []
        right = [Series("memory", memory.x, memory.y, dots=True)] if memory else []
        return Panel("speed and memory", self.history.axis, "tokens/s", left, right, "GiB")

    def _drift(self) -> Panel:
        drift = self.history.drift
        if drift is None:
            return Panel("drift", missing=NOT_RECORDED)
        return drift.panels()[-1]


def loss_panel(train: Column, validation: Column, axis: str = "optimizer step") -> Panel:
    """Training loss of each step, its running mean, and the validation losses. Nats per token."""
    if not train and not validation:
        return Panel("loss", missing=NOT_RECORDED)
    series = [Series("training", train.x, train.y)] if train else []
    window = min(_SMOOTHED, len(train.y) // 10)
    if window > 1:
        series.append(Series(f"training, mean of {window}", train.x, running_mean(train.y, window)))
    if validation:
        series.append(Series("validation", validation.x, validation.y, dots=True))
    return Panel("loss", axis, "nats per token", series)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place; of fewer at the beginning."""
    means, total = [], 0.0
    for place, value in enumerate(values):
        total += value - (values[place - window] if place >= window else 0.0)
        means.append(total / min(place + 1, window))
    return means


def _mapped(column: Column, change: Any) -> Column:
    return _column(column.x, [change(value) for value in column.y])


def _column(x: Sequence[float], y: Sequence[float]) -> Column:
    pairs = [(float(place), float(value)) for place, value in zip(x, y) if math.isfinite(value)]
    return Column(tuple(place for place, _ in pairs), tuple(value for _, value in pairs))


def _extent(column: Column) -> str:
    first, last, low, high = column.y[0], column.y[-1], min(column.y), max(column.y)
    return f"{first:,.4g} → {last:,.4g} (lowest {low:,.4g}, highest {high:,.4g})"


def _read_columns(path: Path) -> tuple[str, dict[str, Column]]:
    """Columns of a CSV file over `step`, or over `epoch` where there are no steps; cells that are no numbers are left out."""
    if not path.is_file():
        return "optimizer step", {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    key = "step" if "step" in names else "epoch"
    if rows and key not in names:
        logger.warning("%s has no column step or epoch and is not shown", path.name)
        return "optimizer step", {}
    columns = {}
    for name in names:
        pairs = [(_cell(row[key]), _cell(row[name])) for row in rows]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        column = _column([x for x, _ in known], [y for _, y in known])
        if name != key and column:
            columns[name] = column
    return ("optimizer step" if key == "step" else "epoch"), columns


def _cell(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s is unreadable and not shown: %s", path.name, error)
        return {}
    return found if isinstance(found, dict) else {}


def _read_drift(path: Path) -> DriftMetrics | None:
    found = _read_json(path)
    if not found:
        return None
    try:
        return DriftMetrics.from_dict(found)
    except ConfigError as error:
        logger.warning("%s is not shown: %s", path.name, error)
        return None
