"""What a parity check found, as rows, text, DataFrame and HTML. Numbers and strings only; the measuring is in `parity`."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils._tables import html_table, text_table

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "format",
    "batch",
    "length",
    "padding",
    "max |Δ|",
    "allowed",
    "mean |Δ|",
    "top-1",
    "model ms",
    "file ms",
    "result",
)


@dataclass
class ParityRow:
    """One shape.

    Attributes:
        format: of the file.
        batch: sequences.
        length: tokens per sequence.
        padding: "none", "left" or "right"; differences count at real tokens only.
        max_abs_diff: largest difference of any logit; NaN where nothing could be compared.
        mean_abs_diff: mean difference of all logits.
        top1_agreement: share of positions where both rank the same token first.
        model_ms: time of the model (eager torch), milliseconds.
        file_ms: time of the file in its runtime, milliseconds.
        tolerance: what `max_abs_diff` may be.
        error: why nothing could be compared; empty otherwise.
    """

    format: str
    batch: int
    length: int
    padding: str = "none"
    max_abs_diff: float = math.nan
    mean_abs_diff: float = math.nan
    top1_agreement: float = math.nan
    model_ms: float = math.nan
    file_ms: float = math.nan
    tolerance: float = math.nan
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the largest difference is within the tolerance; a NaN is not."""
        return not self.error and self.max_abs_diff <= self.tolerance

    def cells(self) -> tuple[str, ...]:
        """The row as it is shown; "—" where nothing could be measured."""
        result = "equal" if self.passed else f"DIFFERS: {self.error}" if self.error else "DIFFERS"
        figures = [
            (self.max_abs_diff, ".2e"),
            (self.tolerance, ".0e"),
            (self.mean_abs_diff, ".2e"),
            (self.top1_agreement, ".1%"),
        ]
        shown = [
            "—" if math.isnan(x) else format(x, form)
            for x, form in [*figures, (self.model_ms, ".2f"), (self.file_ms, ".2f")]
        ]
        return (self.format, str(self.batch), str(self.length), self.padding, *shown, result)


@dataclass
class GreedyResult:
    """The same prompt continued by both.

    Attributes:
        format: of the file.
        tokens: tokens that each produced.
        same: tokens that agree before the first that does not.
        tie: the first that does not was a tie within the tolerance.
    """

    format: str
    tokens: int
    same: int
    tie: bool = False

    @property
    def passed(self) -> bool:
        """Whether all tokens agree, up to a tie."""
        return self.same == self.tokens or self.tie

    def line(self) -> str:
        """One sentence."""
        tail = (
            ""
            if self.same == self.tokens
            else " (then a tie within the tolerance)"
            if self.tie
            else " (then they part: DIFFERS)"
        )
        return f"{self.format}: {self.same} of {self.tokens} greedy tokens agree{tail}"


@dataclass
class TextResult:
    """Bits per byte of both on the same text.

    Attributes:
        format: of the file.
        tokens: tokens of the text.
        bytes: UTF-8 bytes of the text.
        model: bits per byte of the model.
        file: bits per byte of the file.
        tolerance: what the difference may be.
    """

    format: str
    tokens: int
    bytes: int
    model: float
    file: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the file costs no more than the tolerance; a NaN does."""
        return abs(self.file - self.model) <= self.tolerance

    def line(self) -> str:
        """One sentence."""
        tail = "" if self.passed else f": DIFFERS by more than {self.tolerance:g}"
        return f"{self.format}: {self.file:.4f} bits per byte, the model {self.model:.4f}, on {self.bytes:,} bytes of text{tail}"


@dataclass
class ParityReport:
    """The proof of one or several formats.

    Attributes:
        rows: one for each shape.
        greedy: one for each format that continues text.
        text: one for each format, where a text was given.
        traced_shape: (batch, length) that the exporter saw; no row has it.
        tolerance: largest difference that the format may show, for logits of usual size; each row has its own.
        reason: why that much.
    """

    rows: list[ParityRow] = field(default_factory=list)
    greedy: list[GreedyResult] = field(default_factory=list)
    text: list[TextResult] = field(default_factory=list)
    traced_shape: tuple[int, int] | None = None
    tolerance: float = 0.0
    reason: str = ""

    @classmethod
    def joined(cls, reports: Sequence[ParityReport]) -> ParityReport:
        """One report of several formats; with one format, that report itself."""
        if len(reports) == 1:
            return reports[0]
        return cls(
            [row for report in reports for row in report.rows],
            [row for report in reports for row in report.greedy],
            [row for report in reports for row in report.text],
            tolerance=max((report.tolerance for report in reports), default=0.0),
            reason="; ".join(dict.fromkeys(report.reason for report in reports)),
        )

    def _beside(self) -> list[GreedyResult | TextResult]:
        return [*self.greedy, *self.text]

    @property
    def passed(self) -> bool:
        """Whether there are rows and everything agrees."""
        return (
            bool(self.rows) and all(row.passed for row in self.rows) and all(entry.passed for entry in self._beside())
        )

    @property
    def max_abs_diff(self) -> float:
        """Largest difference of all rows; NaN where a row could not be compared or there are none."""
        values = [row.max_abs_diff for row in self.rows]
        return max(values) if values and not any(math.isnan(value) for value in values) else math.nan

    @property
    def verdict(self) -> str:
        """One sentence."""
        failed = [row for row in self.rows if not row.passed]
        if not self.rows:
            return "nothing was compared"
        if failed:
            first = failed[0]
            why = first.error or f"largest difference {first.max_abs_diff:.2e}, allowed {first.tolerance:.0e}"
            return f"{len(failed)} of {len(self.rows)} shapes differ; the first is batch {first.batch} × length {first.length}: {why}"
        others = [entry.line() for entry in self._beside() if not entry.passed]
        if others:
            return "; ".join(others)
        return f"equal at all {len(self.rows)} shapes: largest difference {self.max_abs_diff:.2e}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; NaN becomes None."""
        entries = {"rows": _plain(self.rows), "greedy": _plain(self.greedy), "text": _plain(self.text)}
        head = {"passed": self.passed, "verdict": self.verdict, "tolerance": self.tolerance, "reason": self.reason}
        return {**head, "traced_shape": list(self.traced_shape) if self.traced_shape else None, **entries}

    def to_dataframe(self) -> pd.DataFrame:
        """The rows, one column for each attribute of `ParityRow`, and `passed`."""
        import pandas as pd

        names = [entry.name for entry in dataclasses.fields(ParityRow)]
        return pd.DataFrame(
            [{**dataclasses.asdict(row), "passed": row.passed} for row in self.rows], columns=[*names, "passed"]
        )

    def _notes(self) -> list[str]:
        traced = (
            ()
            if self.traced_shape is None
            else (f"traced with batch {self.traced_shape[0]} × length {self.traced_shape[1]}",)
        )
        lines = [entry.line() for entry in self._beside()]
        return [
            self.verdict,
            *lines,
            *traced,
            f"allowed: {self.tolerance:g} × the root mean square of the logits, or × 1 where that is smaller; {self.reason}",
        ]

    def summary(self) -> str:
        """The table, then the verdict, the greedy and text lines, the traced shape and the tolerance's reason."""
        table = text_table(_COLUMNS, [row.cells() for row in self.rows], title="Exported file against the model")
        return "\n".join([table, *self._notes()])

    def _repr_html_(self) -> str:
        classes = ["passed" if row.passed else "failed" for row in self.rows]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._notes())
        return html_table(_COLUMNS, [row.cells() for row in self.rows], classes=classes) + f"<ul>{notes}</ul>"


def _plain(entries: Sequence[ParityRow | GreedyResult | TextResult]) -> list[dict[str, Any]]:
    """Entries as dictionaries, with `passed`; NaN becomes None."""
    plain = [{**dataclasses.asdict(entry), "passed": entry.passed} for entry in entries]
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in entry.items()} for entry in plain]
