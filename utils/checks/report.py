"""What a check found, and the report that gathers the findings. Knows no torch, runs no check.

A report has four views of the same facts: text (`summary`), a DataFrame, plain types (`to_dict`) and HTML, for a notebook
(`_repr_html_`) or as a page of its own (`save_html`). Pictures are drawn by `pictures`, patches are made by `patching`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from utils._files import json_text, write_text
from utils._pages import render
from utils._tables import text_table
from utils.errors import CheckError, ConfigError
from utils.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from utils.checks.patching import Patch
    from utils.checks.session import Examined

Status = Literal["pass", "warn", "fail", "skip"]
STATUSES: tuple[Status, ...] = get_args(Status)
TABLE = "table"
"""The key of `CheckResult.measured` under which a check keeps its rows, a list of dicts with equal keys."""

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass
class CheckResult:
    """The outcome of one check.

    Attributes:
        name: what was checked, e.g. "gradient flow".
        status: "pass", "warn" (usable, but look), "fail" (the model is at fault, or the check could not finish) or "skip"
            (does not apply; the headline says why).
        headline: what was seen, with figures and units.
        cause: why, naming the module; empty where nothing is wrong.
        fix: what to change; empty where nothing is wrong.
        measured: figures in plain types; rows of a table under "table".
        seconds: duration of the check.
        unfinished: why the check itself could not finish; empty where it did. Such a check has failed.
        arrays: what a picture of the result is drawn from, by name; in no other view.
        patch: a change of the model's source that mends the fault, re-tested; None where none is known.
    """

    name: str
    status: Status
    headline: str
    cause: str = ""
    fix: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    unfinished: str = ""
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    patch: Patch | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ConfigError(f"status={self.status!r} is unknown; a check ends as one of {', '.join(STATUSES)}.")

    @property
    def passed(self) -> bool:
        """True for "pass" and "warn"."""
        return self.status in ("pass", "warn")

    @property
    def details(self) -> pd.DataFrame:
        """The rows that the check measured (one row per shape, layer, …); empty where it keeps none."""
        import pandas as pd

        return pd.DataFrame(self.measured.get(TABLE, []))

    def to_dataframe(self) -> pd.DataFrame:
        """The same as `details`."""
        return self.details

    def to_dict(self) -> dict[str, Any]:
        """Plain types that `json.dumps` takes; NaN and infinities become text. The patch as its diff."""
        shown = ("name", "status", "headline", "cause", "fix", "measured", "seconds", "unfinished")
        plain = {name: _plain(getattr(self, name)) for name in shown}
        return {**plain, "patch": self.patch.diff if self.patch is not None else ""}

    def figure(self) -> Figure | None:
        """The picture of this result as a matplotlib figure; None for a check that has none."""
        from utils.checks.pictures import picture_of

        return picture_of(self)

    def summary(self) -> str:
        """Headline, cause, fix and patch as text."""
        return "\n".join([f"{self.name}: {self.status} ({self.seconds:.2f} s)", f"  {self.headline}", *self._advice()])

    def _advice(self) -> list[str]:
        lines = [f"  {label}: {text}" for label, text in (("cause", self.cause), ("fix", self.fix)) if text]
        if self.patch is not None:
            lines += [f"  patch ({self.patch.summary()})", *(f"    {line}" for line in self.patch.diff.splitlines())]
        return lines

    def _repr_html_(self) -> str:
        return Report(self.name, [self])._repr_html_()


CheckCallback = Callable[[CheckResult], None]
"""Given the result of a check as soon as it is there."""


def ignore_check(result: CheckResult) -> None:
    """A `CheckCallback` that does nothing."""


class Report:
    """Check results in the order in which they ran.

    Attributes:
        title: what was examined.
        checks: one CheckResult each.
        stopped: why the run ended before its last check, with how many ran; empty where it did not.
        subject: the model that was examined and how its checks ran, for `apply`; None where nobody gave it.
    """

    def __init__(
        self, title: str, checks: Iterable[CheckResult] = (), stopped: str = "", subject: Examined | None = None
    ) -> None:
        self.title = title
        self.checks: list[CheckResult] = list(checks)
        self.stopped = stopped
        self.subject = subject

    def __repr__(self) -> str:
        return f"<Report {self.title!r}: {self.verdict}>"

    def __getitem__(self, name: str) -> CheckResult:
        """The result of the check called `name`. Raises KeyError with the names that are there."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check is called {name!r}; this report holds: {', '.join(c.name for c in self.checks)}")

    def named(self, *statuses: Status) -> list[str]:
        """Names of the checks that ended with one of `statuses`."""
        return [check.name for check in self.checks if check.status in statuses]

    @property
    def passed(self) -> bool:
        """False when a check failed or could not finish, when the run was stopped, and when no check ran at all."""
        return bool(self.named("pass", "warn")) and not self.named("fail") and not self.stopped

    @property
    def verdict(self) -> str:
        """One sentence that names the checks to look at."""
        ran = [check for check in self.checks if check.status != "skip"]
        if not ran:
            return self.stopped or "No check ran, so nothing is known about this model."
        failed = [check.name for check in ran if check.status == "fail" and not check.unfinished]
        unfinished = [check.name for check in ran if check.unfinished]
        warned = self.named("warn")
        parts = [f"{len(failed)} of {len(ran)} checks failed: {', '.join(failed)}"] if failed else []
        parts += (
            [f"{len(unfinished)} of {len(ran)} checks could not finish: {', '.join(unfinished)}"] if unfinished else []
        )
        if parts:
            return " ".join([*filter(None, [self.stopped]), "; ".join(parts) + "."])
        extra = f", {len(warned)} with a warning: {', '.join(warned)}" if warned else ""
        if self.stopped:
            return f"{self.stopped} None of these {len(ran)} failed{extra}."
        return f"All {len(ran)} checks passed{extra}."

    @property
    def seconds(self) -> float:
        """Duration of all checks together."""
        return sum(check.seconds for check in self.checks)

    def find_patches(self, names: Iterable[str], progress: ProgressCallback = ignore_progress) -> None:
        """Look for patches for checks of this report, where `validate` was told not to; found ones are in the results.

        Args:
            names: of checks; for those that are green nothing is looked for.
            progress: told before each search.
        """
        if self.subject is not None:
            self.subject.session.mend(self.subject.checks, self.checks, progress, set(names))

    def apply(
        self,
        check: str | CheckResult,
        progress: ProgressCallback = ignore_progress,
        on_check: CheckCallback = ignore_check,
    ) -> Report:
        """The report on a copy of the model with the patch of one check applied; the model itself stays as it is.

        Args:
            check: the name of the check, or its result, which holds a patch.
            progress: told before each check.
            on_check: given each result as soon as it is there.

        Returns:
            A report of the same tier on the patched copy, which is `report.subject.model`. Other patches of this report are
            looked for anew there, since they change another text now.

        Raises:
            CheckError: this check holds no patch.
        """
        result = self[check] if isinstance(check, str) else check
        if result.patch is None or self.subject is None:
            held = ", ".join(c.name for c in self.checks if c.patch is not None) or "none"
            raise CheckError(f"The check {result.name!r} holds no patch. Checks of this report that hold one: {held}.")
        others = {c.name for c in self.checks if c.patch is not None and c is not result}
        return self.subject.patched(result.patch, others, progress, on_check)

    def figures(self) -> dict[str, Figure]:
        """The pictures of all checks that have one, by the check's name."""
        drawn = {check.name: check.figure() for check in self.checks}
        return {name: figure for name, figure in drawn.items() if figure is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain types: title, passed, verdict, seconds and the checks."""
        return {
            "title": self.title,
            "passed": self.passed,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
            "checks": [check.to_dict() for check in self.checks],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json_text(self.to_dict())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per check: check, status, headline, cause, fix, seconds."""
        import pandas as pd

        columns = ("name", "status", "headline", "cause", "fix", "seconds")
        rows = [{column: getattr(check, column) for column in columns} for check in self.checks]
        return pd.DataFrame(rows, columns=list(columns)).rename(columns={"name": "check"})

    def summary(self) -> str:
        """The verdict, a table, and below it cause, fix and patch of everything that is not simply passed."""
        rows = [(c.name, c.status.upper(), c.headline, f"{c.seconds:.2f}") for c in self.checks]
        lines = [text_table(("Check", "Status", "Headline", "s"), rows, title=self.title)] if rows else [self.title]
        for check in self.checks:
            if advice := check._advice():
                lines += [f"\n{check.name} ({check.status})", *advice]
        return "\n".join([*lines, "", self.verdict])

    def _repr_html_(self) -> str:
        return self._render("report.html")

    def save_html(self, path: str | Path) -> Path:
        """Write the report as one self-contained page (no script, no outside resource) and return its path."""
        return write_text(path, self._render("report_page.html"))

    def _render(self, template: str) -> str:
        from utils.checks.pictures import embedded

        return render(
            _TEMPLATES / template, report=self, columns=_columns, cell=_cell, table_key=TABLE, picture=embedded
        )


def _columns(rows: list[Mapping[str, Any]]) -> list[str]:
    """The keys of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _cell(value: object) -> str:
    """A table cell: floats with four significant digits, None as nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """`value` in types that JSON knows; what it does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
