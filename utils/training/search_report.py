"""What a search found, for people: a table of its trials, and a page with its pictures. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from utils._extras import require
from utils._files import write_text
from utils._pages import render
from utils._tables import html_table
from utils.training.search_study import SearchStudy

if TYPE_CHECKING:
    import pandas as pd

ENDED = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "interrupted", "RUNNING": "running", "WAITING": "waiting"}
"""Optuna's name of a trial's state → ours."""

FEWEST = 4
"""Complete trials with different losses below which importances say nothing."""


@dataclass(frozen=True)
class Figure:
    """A picture of a page, as HTML, or why there is none."""

    title: str
    picture: Markup | None
    why: str = ""


def trials_table(study: SearchStudy) -> pd.DataFrame:
    """One row per trial: number, state, loss (nats per label, the last one that was reported), places, seconds, why it ended,
    folder of its run, and the values.
    """
    import pandas as pd

    rows = []
    for trial in study.trials:
        reported, attributes = trial.intermediate_values, trial.user_attrs
        newest = reported[max(reported)] if reported else None
        rows.append(
            {
                "trial": trial.number,
                "state": ENDED[trial.state.name],
                "loss": newest if trial.value is None else trial.value,
                "validations": len(reported),
                "seconds": attributes.get("seconds"),
                **{name: trial.params.get(name) for name in study.space.parts},
                "why": attributes.get("why") or attributes.get("origin", ""),
                "run": attributes.get("run", ""),
            }
        )
    columns = ["trial", "state", "loss", "validations", "seconds", *study.space.parts, "why", "run"]
    return pd.DataFrame(rows, columns=columns)


def table_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The cells of `trials_table` as people read them."""
    return [tuple(_cell(value) for value in row) for row in table.itertuples(index=False)]


def importances(study: SearchStudy) -> dict[str, float]:
    """Setting → share of the spread of the losses that it explains (fANOVA, Hutter et al. 2014), the largest first.

    Empty where fewer than `FEWEST` complete trials differ: nothing could be said then.
    """
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in done}) < FEWEST:
        return {}
    import optuna

    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.seed)
    return dict(optuna.importance.get_param_importances(study.study, evaluator=evaluator))


def save_page(study: SearchStudy, path: Path, headline: str) -> Path:
    """Write the page: history, course of the trials, importances, parallel coordinates, and all trials; one file, no outside
    resource.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    require("plotly", extra="search", feature="The page of a search")
    table = trials_table(study)
    page = render(
        Path(__file__).with_name("templates") / "search.html",
        name=study.folder.name,
        headline=headline,
        space=study.space.summary(),
        figures=_figures(study),
        table=Markup(html_table(list(table.columns), table_rows(table))),
    )
    return write_text(path, page)


def _figures(study: SearchStudy) -> list[Figure]:
    from optuna import visualization

    complete = sum(trial.state.name == "COMPLETE" for trial in study.trials)
    names = list(study.space.parts)
    few = f"it needs a complete trial or more, and there are {complete}"
    alike = f"it needs {FEWEST} complete trials with different losses"
    wanted: list[tuple[str, bool, str, Any]] = [
        ("Loss of each trial", complete > 0, few, lambda: visualization.plot_optimization_history(study.study)),
        ("Course of each trial", complete > 0, few, lambda: visualization.plot_intermediate_values(study.study)),
        ("Importance of each setting", bool(importances(study)), alike, lambda: _importance_figure(study)),
        (
            "Settings and loss (parallel coordinates)",
            complete > 0 and len(names) > 1,
            few if complete == 0 else "it needs two settings or more",
            lambda: visualization.plot_parallel_coordinate(study.study, params=names),
        ),
    ]
    found, first = [], True
    for title, possible, why, draw in wanted:
        found.append(Figure(title, _drawn(draw(), with_script=first) if possible else None, "" if possible else why))
        first = first and not possible
    return found


def _importance_figure(study: SearchStudy) -> Any:
    import optuna

    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.seed)
    return optuna.visualization.plot_param_importances(study.study, evaluator=evaluator)


def _drawn(figure: Any, with_script: bool) -> Markup:
    """A figure as a part of a page, with plotly's script the first time."""
    figure.update_layout(title=None, margin={"t": 30})
    return Markup(figure.to_html(full_html=False, include_plotlyjs=with_script))


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN: pandas' word for nothing
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
