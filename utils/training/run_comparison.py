"""Runs side by side: a table, what their settings differ in, and their curves over each other. Reads what their folders hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from utils._files import whole_file, write_text
from utils._pages import render
from utils._tables import text_table
from utils.errors import TrainingError
from utils.training.curves import Panel, Series, picture_png, picture_svg
from utils.training.dashboard import NOT_RECORDED, Column, RunHistory, running_mean
from utils.training.run_record import number, size
from utils.training.runs import WORKSPACE, Run, load_runs
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = Path(__file__).with_name("templates") / "comparison.html"
COLUMNS = (
    "run",
    "state",
    "steps",
    "bits per byte",
    "val loss",
    "train loss",
    "parameters",
    "tokens/s",
    "memory",
    "time",
)
_NAMING = {"run_name", "notes"}
"""Settings that say which run it is, and not what it does."""
_SMOOTHED = 20
"""Points over which training curves are averaged, at most: many noisy lines over each other show nothing."""


class RunComparison:
    """Several runs, the best first: by bits per byte of validation, else by its loss; runs without either come last.

    Args:
        runs: at least one.

    Raises:
        TrainingError: there is none.

    Example:
        >>> print(compare_runs(["first", "second"]).summary())
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        if not runs:
            raise TrainingError("There are no runs to compare.")
        self.runs = sorted(runs, key=_merit)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per run with all fields of `RunRecord` (plain numbers, None where not measured) and the state."""
        import dataclasses

        import pandas as pd

        return pd.DataFrame([{**dataclasses.asdict(run.record), "state": run.state} for run in self.runs])

    def differences(self) -> dict[str, list[Any]]:
        """Setting → its value in each run, for those that are not the same in all."""
        usual = TrainingConfig().to_dict()
        settings = [{**usual, **_settings(run)} for run in self.runs]
        names = [name for name in usual if name not in _NAMING]
        found = {name: [values[name] for values in settings] for name in names}
        return {name: values for name, values in found.items() if any(value != values[0] for value in values)}

    def notes(self) -> list[str]:
        """What keeps the figures from being compared as they stand."""
        found = []
        if len({run.record.data_hash for run in self.runs}) > 1:
            found.append(
                "The runs saw different text, tokenizers or block lengths: bits per byte are taken over different bytes."
            )
        if any(run.state != "finished" for run in self.runs):
            found.append("Some runs have not finished: their figures are those of the last step that was written down.")
        return found

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of the table under `COLUMNS`."""
        return [_cells(run) for run in self.runs]

    def panels(self) -> list[Panel]:
        """Validation and training of all runs over each other, in bits per byte where all have them, else in nats."""
        histories = [(run.name, run.history) for run in self.runs]
        return [_overlaid("validation", "val", histories), _overlaid("training", "train", histories)]

    def summary(self) -> str:
        """Table, differences and notes as text."""
        parts = [text_table(COLUMNS, self.rows(), title=f"{len(self.runs)} runs, the best first", width=150)]
        differing = self._difference_rows()
        if differing:
            names = ("setting", *(run.name for run in self.runs))
            parts.append(text_table(names, differing, title="Settings that differ", width=150))
        return "\n\n".join([*parts, *self.notes()])

    __str__ = summary

    def html(self) -> str:
        """A page that needs nothing else, readable in dark and light."""
        return render(
            TEMPLATE,
            columns=COLUMNS,
            rows=self.rows(),
            names=[run.name for run in self.runs],
            differences=self._difference_rows(),
            notes=self.notes(),
            picture=Markup(picture_svg(self.panels())),
        )

    def save_html(self, path: str | Path) -> Path:
        """Write the page."""
        return write_text(path, self.html())

    def save_png(self, path: str | Path) -> Path:
        """Write the curves as a picture."""
        with whole_file(path) as file:
            file.write(picture_png(self.panels()))
        return Path(path)

    def _repr_html_(self) -> str:
        return self.html()

    def _difference_rows(self) -> list[tuple[str, ...]]:
        return [(name, *map(str, values)) for name, values in self.differences().items()]


def compare_runs(names: Sequence[str] = (), workspace: str | Path = WORKSPACE) -> RunComparison:
    """Runs side by side, by name; all of the workspace where none is named.

    Raises:
        TrainingError: one of them is not there, or there are none at all.
    """
    return RunComparison(load_runs(names, workspace))


def _cells(run: Run) -> tuple[str, ...]:
    record = run.record
    return (
        run.name,
        run.state,
        record.steps_of_total,
        number(record.bits_per_byte),
        number(record.val_loss),
        number(record.train_loss),
        number(record.parameters, 0),
        number(record.tokens_per_second, 0),
        size(record.memory_bytes),
        "–" if record.seconds is None else f"{record.seconds:,.0f} s",
    )


def _merit(run: Run) -> tuple[bool, float, bool, float, str]:
    record = run.record
    bits, loss = record.bits_per_byte, record.val_loss
    return bits is None, bits or 0.0, loss is None, loss or 0.0, run.name


def _settings(run: Run) -> dict[str, Any]:
    found = json.loads(run.record.settings)
    return found if isinstance(found, dict) else {}


def _overlaid(title: str, part: str, histories: Sequence[tuple[str, RunHistory]]) -> Panel:
    in_bits = all(history[f"{part}/bits_per_byte"] or not history[f"{part}/loss"] for _, history in histories)
    column, unit = (f"{part}/bits_per_byte", "bits per byte") if in_bits else (f"{part}/loss", "nats per label")
    series = [_curve(name, history[column], part == "val") for name, history in histories if history[column]]
    if not series:
        return Panel(title, missing=NOT_RECORDED)
    return Panel(title, "optimizer step", unit, series)


def _curve(name: str, column: Column, dots: bool) -> Series:
    window = 1 if dots else max(min(_SMOOTHED, len(column.y) // 10), 1)
    return Series(name, column.x, running_mean(column.y, window), dots=dots)
