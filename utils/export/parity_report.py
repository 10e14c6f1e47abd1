"""What a parity check found, as rows, text, DataFrame and HTML. Numbers and strings only; the measuring is in `parity`."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils._tables import html_table, text_table
from utils.export.signature import Shape

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

_SCALE = "the root mean square of the logits, or × 1 where that is smaller"


@dataclass
class ParityRow:
    """One shape.

    Attributes:
        format: of the file.
        batch: sequences or images.
        length: tokens per sequence; None for images.
        decoder_length: tokens that the decoder gets; None where there is none.
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
    length: int | None = None
    decoder_length: int | None = None
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

    @property
    def where(self) -> str:
        """The shape in words."""
        return str(Shape(self.batch, self.length, self.decoder_length))

    @property
    def length_words(self) -> str:
        """Length, or length → decoder length; "—" for images."""
        if self.length is None:
            return "—"
        return str(self.length) if self.decoder_length is None else f"{self.length} → {self.decoder_length}"

    def cells(self) -> tuple[str, ...]:
        """The row as it is shown; "—" where nothing could be measured."""
        good = "runs" if math.isinf(self.tolerance) else "equal"
        result = good if self.passed else f"DIFFERS: {self.error}" if self.error else "DIFFERS"
        figures = [
            (self.max_abs_diff, ".2e"),
            (math.nan if math.isinf(self.tolerance) else self.tolerance, ".0e"),
            (self.mean_abs_diff, ".2e"),
            (self.top1_agreement, ".1%"),
        ]
        shown = [
            "—" if math.isnan(x) else format(x, form)
            for x, form in [*figures, (self.model_ms, ".2f"), (self.file_ms, ".2f")]
        ]
        return (self.format, str(self.batch), self.length_words, self.padding, *shown, result)


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
class CostResult:
    """What a file's distribution costs where the model's is true.

    Attributes:
        format: of the file.
        rows: tokens, or examples, that were weighed.
        model: bits of the model's own distribution, per row (its entropy).
        lost: bits that the file needs on top, per row (the Kullback–Leibler divergence from the model to the file).
        share: part of the model's bits, or of one bit where it has fewer, that may be lost.
        top1_agreement: share of rows where both rank the same class or token first.
        origin: what the rows are.
    """

    format: str
    rows: int
    model: float
    lost: float
    share: float
    top1_agreement: float
    origin: str

    @property
    def passed(self) -> bool:
        """Whether the file costs no more than the stated share; a NaN does."""
        return self.lost <= self.share * max(1.0, self.model)

    def line(self) -> str:
        """One sentence."""
        tail = "" if self.passed else ": COSTS TOO MUCH"
        return (
            f"{self.format}: costs {self.lost:.4f} bits on top of the model's {self.model:.3f}, on {self.rows:,} rows of "
            f"{self.origin} (allowed {self.share * max(1.0, self.model):.3f}); top-1 agreement {self.top1_agreement:.1%}{tail}"
        )


@dataclass
class ParityReport:
    """The proof of one or several formats.

    Attributes:
        rows: one for each shape.
        greedy: one for each format that continues text.
        text: one for each format, where a text was given.
        cost: one for each format that is judged by what it costs.
        traced_shape: sizes that the exporter saw; no row has them.
        sizes: format → bytes of its files.
        weights: bytes of the model's weights in float32.
        notes: what the file says of itself that does not hold; anything here refuses it.
        remarks: what was not compared, and why.
        tolerance: largest difference that the format may show, for logits of usual size; each row has its own.
        reason: why that much.
    """

    rows: list[ParityRow] = field(default_factory=list)
    greedy: list[GreedyResult] = field(default_factory=list)
    text: list[TextResult] = field(default_factory=list)
    cost: list[CostResult] = field(default_factory=list)
    traced_shape: Shape | None = None
    tolerance: float = 0.0
    reason: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def joined(cls, reports: Sequence[ParityReport]) -> ParityReport:
        """One report of several formats; with one format, that report itself."""
        if len(reports) == 1:
            return reports[0]
        return cls(
            [row for report in reports for row in report.rows],
            [row for report in reports for row in report.greedy],
            [row for report in reports for row in report.text],
            [row for report in reports for row in report.cost],
            sizes={name: size for report in reports for name, size in report.sizes.items()},
            weights=max((report.weights for report in reports), default=0),
            notes=[note for report in reports for note in report.notes],
            remarks=list(dict.fromkeys(remark for report in reports for remark in report.remarks)),
            tolerance=max(
                (report.tolerance for report in reports if math.isfinite(report.tolerance)),
                default=math.inf if reports else 0.0,
            ),
            reason="; ".join(dict.fromkeys(report.reason for report in reports)),
        )

    def _beside(self) -> list[GreedyResult | TextResult | CostResult]:
        return [*self.greedy, *self.text, *self.cost]

    def of(self, format_name: str) -> list[ParityRow]:
        """The rows of one format."""
        return [row for row in self.rows if row.format == format_name]

    @property
    def passed(self) -> bool:
        """Whether there are rows and everything agrees."""
        entries = [*self.rows, *self._beside()]
        return bool(self.rows) and not self.notes and all(entry.passed for entry in entries)

    @property
    def max_abs_diff(self) -> float:
        """Largest difference of all rows; NaN where a row could not be compared or there are none."""
        values = [row.max_abs_diff for row in self.rows]
        return max(values) if values and not any(math.isnan(value) for value in values) else math.nan

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that were compared, in order."""
        return tuple(dict.fromkeys(row.format for row in self.rows))

    @property
    def verdict(self) -> str:
        """One sentence for each format."""
        if not self.rows:
            return "nothing was compared"
        if self.notes:
            return "; ".join(self.notes)
        told = [self._verdict_of(name) for name in self.formats]
        return told[0] if len(told) == 1 else "; ".join(f"{name}: {line}" for name, line in zip(self.formats, told))

    def _verdict_of(self, format_name: str) -> str:
        rows = self.of(format_name)
        failed = [row for row in rows if not row.passed]
        if failed:
            first = failed[0]
            why = first.error or f"largest difference {first.max_abs_diff:.2e}, allowed {first.tolerance:.0e}"
            return f"{len(failed)} of {len(rows)} shapes differ; the first is {first.where}: {why}"
        beside = [entry for entry in self._beside() if entry.format == format_name]
        others = [entry.line() for entry in beside if not entry.passed]
        if others:
            return "; ".join(others)
        if any(isinstance(entry, CostResult) for entry in beside):
            return f"runs at all {len(rows)} shapes and costs what it may"
        return f"equal at all {len(rows)} shapes: largest difference {max(row.max_abs_diff for row in rows):.2e}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON; NaN becomes None."""
        entries = {
            "rows": _plain(self.rows),
            "greedy": _plain(self.greedy),
            "text": _plain(self.text),
            "cost": _plain(self.cost),
        }
        tolerance = None if math.isinf(self.tolerance) else self.tolerance
        head = {"passed": self.passed, "verdict": self.verdict, "tolerance": tolerance, "reason": self.reason}
        sizes = {"bytes": self.sizes, "weights_bytes": self.weights}
        head["remarks"] = self.remarks
        return {**head, "traced_shape": list(self.traced_shape) if self.traced_shape else None, **sizes, **entries}

    def to_dataframe(self) -> pd.DataFrame:
        """The rows, one column for each attribute of `ParityRow`, and `passed`."""
        import pandas as pd

        names = [entry.name for entry in dataclasses.fields(ParityRow)]
        return pd.DataFrame(
            [{**dataclasses.asdict(row), "passed": row.passed} for row in self.rows], columns=[*names, "passed"]
        )

    def _notes(self) -> list[str]:
        traced = () if self.traced_shape is None else (f"traced with {self.traced_shape}",)
        lines = [entry.line() for entry in self._beside()]
        allowed = "" if math.isinf(self.tolerance) else f"allowed: {self.tolerance:g} × {_SCALE}; "
        sizes = [
            f"{name}: {size / 1e6:.2f} MB, the model's weights {self.weights / 1e6:.2f} MB in float32"
            for name, size in self.sizes.items()
        ]
        return [self.verdict, *lines, *self.remarks, *sizes, *traced, f"{allowed}{self.reason}"]

    def summary(self) -> str:
        """The table, then the verdict, the greedy and text lines, the traced shape and the tolerance's reason."""
        table = text_table(_COLUMNS, [row.cells() for row in self.rows], title="Exported file against the model")
        return "\n".join([table, *self._notes()])

    def _repr_html_(self) -> str:
        classes = ["passed" if row.passed else "failed" for row in self.rows]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._notes())
        return html_table(_COLUMNS, [row.cells() for row in self.rows], classes=classes) + f"<ul>{notes}</ul>"


def _plain(entries: Sequence[ParityRow | GreedyResult | TextResult | CostResult]) -> list[dict[str, Any]]:
    """Entries as dictionaries, with `passed`; NaN and infinity become None."""
    plain = [{**dataclasses.asdict(entry), "passed": entry.passed} for entry in entries]
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in e.items()} for e in plain]
