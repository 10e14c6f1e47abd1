"""What a check found, and the report that gathers the findings. Knows no torch, runs no check.

A report has four views of the same facts: text (`summary`), a DataFrame, plain types (`to_dict`) and HTML, for a notebook
(`_repr_html_`) or as a page of its own (`save_html`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from utils._files import write_text
from utils._pages import render
from utils._tables import text_table
from utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["passed", "warning", "failed", "error", "skipped"]
STATUSES: tuple[Status, ...] = get_args(Status)
TABLE = "table"
"""The key of `CheckResult.details` under which a check keeps its rows, a list of dicts with equal keys."""

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass
class CheckResult:
    """The outcome of one check.

    Attributes:
        name: what was checked, e.g. "gradient flow".
        status: "passed", "warning" (usable, but look), "failed" (the model is at fault), "error" (the check itself
            could not finish; never counts as passed) or "skipped" (does not apply; the finding says why).
        finding: what was seen, with figures and units.
        cause: why, naming the module; empty where nothing is wrong.
        fix: what to change; empty where nothing is wrong.
        details: figures in plain types; rows of a table under "table".
        seconds: duration of the check.
    """

    name: str
    status: Status
    finding: str
    cause: str = ""
    fix: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ConfigError(f"status={self.status!r} is unknown; a check ends as one of {', '.join(STATUSES)}.")

    @property
    def passed(self) -> bool:
        """True for "passed" and "warning"."""
        return self.status in ("passed", "warning")

    def to_dict(self) -> dict[str, Any]:
        """Plain types that `json.dumps` takes; NaN and infinities become text."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def to_dataframe(self) -> pd.DataFrame:
        """The rows that the check measured (one row per shape, layer, …); empty where it keeps none."""
        import pandas as pd

        return pd.DataFrame(self.details.get(TABLE, []))

    def summary(self) -> str:
        """Finding, cause and fix as text."""
        lines = [f"{self.name}: {self.status} ({self.seconds:.2f} s)", f"  {self.finding}"]
        lines += [f"  {label}: {text}" for label, text in (("cause", self.cause), ("fix", self.fix)) if text]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return Report(self.name, [self])._repr_html_()


class Report:
    """Check results in the order in which they ran.

    Attributes:
        title: what was examined.
        checks: one CheckResult each.
    """

    def __init__(self, title: str, checks: Iterable[CheckResult] = ()) -> None:
        self.title = title
        self.checks: list[CheckResult] = list(checks)

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
        """False when a check failed or could not finish, and when none ran at all."""
        return bool(self.named("passed", "warning")) and not self.named("failed", "error")

    @property
    def verdict(self) -> str:
        """One sentence that names the checks to look at."""
        ran = [check for check in self.checks if check.status != "skipped"]
        if not ran:
            return "No check ran, so nothing is known about this model."
        failed, errors, warned = self.named("failed"), self.named("error"), self.named("warning")
        if failed or errors:
            parts = [f"{len(failed)} of {len(ran)} checks failed: {', '.join(failed)}"] if failed else []
            parts += [f"{len(errors)} of {len(ran)} checks could not finish: {', '.join(errors)}"] if errors else []
            return "; ".join(parts) + "."
        extra = f", {len(warned)} with a warning: {', '.join(warned)}" if warned else ""
        return f"All {len(ran)} checks passed{extra}."

    @property
    def seconds(self) -> float:
        """Duration of all checks together."""
        return sum(check.seconds for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain types: title, passed, verdict, seconds and the checks."""
        return {
            "title": self.title,
            "passed": self.passed,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
            "checks": [check.to_dict() for check in self.checks],
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row per check: check, status, finding, cause, fix, seconds."""
        import pandas as pd

        columns = ("name", "status", "finding", "cause", "fix", "seconds")
        rows = [{column: getattr(check, column) for column in columns} for check in self.checks]
        return pd.DataFrame(rows, columns=list(columns)).rename(columns={"name": "check"})

    def summary(self) -> str:
        """The verdict, a table, and below it cause and fix of everything that is not simply passed."""
        rows = [(c.name, c.status.upper(), c.finding, f"{c.seconds:.2f}") for c in self.checks]
        lines = [text_table(("Check", "Status", "Finding", "s"), rows, title=self.title)] if rows else [self.title]
        for check in self.checks:
            if check.cause or check.fix:
                lines.append(f"\n{check.name} ({check.status})")
                lines += [f"  {label}: {text}" for label, text in (("cause", check.cause), ("fix", check.fix)) if text]
        return "\n".join([*lines, "", self.verdict])

    def _repr_html_(self) -> str:
        return self._render("report.html")

    def save_html(self, path: str | Path) -> Path:
        """Write the report as one self-contained page (no script, no outside resource) and return its path."""
        return write_text(path, self._render("report_page.html"))

    def _render(self, template: str) -> str:
        return render(_TEMPLATES / template, report=self, columns=_columns, cell=_cell, table_key=TABLE)


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
