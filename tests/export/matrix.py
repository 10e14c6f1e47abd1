"""Which models of the zoo can be kept in which formats: a table with the figure of every proof and the reason of every refusal.

`python -m tests.export` prints it. Knows the zoo and the exporters' common face, no format.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.zoo.entry import TASKS, Entry
from tests.zoo.table import ENTRIES, ZOO
from utils._tables import text_table
from utils.adapters.model_adapter import adapt
from utils.errors import ExportError, ParityError, TransformerBuilderError
from utils.export.child import ChildRuntime
from utils.export.exporter import FORMATS, exporter_for
from utils.export.parity_report import ParityReport
from utils.export.samples import samples_of
from utils.export.subject import ExportSubject, subject_of

EVERY = 8
"""Each so manieth entry of every task is tried: the table's own order chooses, and not what passes."""

NAMED = (
    "nanoGPT",
    "causal buffer",
    "LSTM",
    "export: typical",
    "export: classic post-norm on request",
    "gpt2 (causal)",
    "llama (causal)",
    "bert (masked)",
    "encoder with padding mask",
    "nn.Transformer",
    "t5 (seq2seq)",
    "bart (seq2seq)",
    "bert (classes)",
    "vit (vision)",
    "resnet (vision)",
)
"""What people bring most, tried whether the step meets it or not."""

REQUIRED = {"onnx": 0.95, "pt2": 0.95}
"""Format → share of the models that it must hold."""

SECONDS = 120.0
"""How long one opening or call may take in the child."""

_NAMES_ITS_CAUSE = (
    r"aten[.:]|\bprims?[.:]|\b[Oo]perator\b|\bONNX function\b|\b(?:node|op)\b|\bnn\.\w+",  # an operator
    r"\bbatch \d|\blength \d|\bshape|\bdimension|\bsize of tensor|\bstatic\b|\bspecializ|\bdynamic\b|\bstride",  # a shape
    r"data-dependent|\bmask\b|\bids\b|\bargument|\binputs?\b|\bscript|\bpickl|\bstate\b|\brandom|\bNaN\b",  # a convention
)


@dataclass(frozen=True)
class Cell:
    """What became of one model in one format.

    Attributes:
        report: the proof of a file that was kept; None for a refused one.
        reason: why it was refused; empty otherwise.
        seconds: time of writing and proving.
    """

    report: ParityReport | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether there is a proven file."""
        return self.report is not None

    @property
    def names_its_cause(self) -> bool:
        """Whether a refusal names an operator, a shape or a convention; true for what was kept."""
        return self.kept or any(re.search(pattern, self.reason) for pattern in _NAMES_ITS_CAUSE)

    def words(self) -> str:
        """The cell as it is shown."""
        if self.report is None:
            return "refused: " + self.reason
        shapes = f"({len(self.report.rows)} shapes)"
        if self.report.cost:
            return f"costs {max(cost.lost for cost in self.report.cost):.1e} bits {shapes}"
        return f"equal {self.report.max_abs_diff:.0e} {shapes}"


@dataclass
class Row:
    """One model in every format that was asked for."""

    entry: Entry
    cells: dict[str, Cell] = field(default_factory=dict)


def chosen(parts: Sequence[str] = ()) -> list[Entry]:
    """Entries to try, by task: the fixed list, or every entry of the zoo whose name holds one of the parts."""
    if parts:
        picked = [entry for entry in ENTRIES if any(part in entry.name for part in parts)]
    else:
        by_task = [[entry for entry in ENTRIES if entry.task == task] for task in TASKS]
        names = {entry.name for entries in by_task for entry in entries[::EVERY]} | set(NAMED)
        picked = [ZOO[name] for name in ZOO if name in names]
    return sorted(picked, key=lambda entry: TASKS.index(entry.task))


def fill(
    entries: Sequence[Entry], formats: Sequence[str] = (), tell: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Export and prove every entry in every format; all formats where none is named.

    Args:
        entries: models of the zoo.
        formats: names of `utils.export.exporter.FORMATS`.
        tell: called with a line for each cell.
    """
    rows = []
    with ChildRuntime(seconds=SECONDS) as child:
        for number, entry in enumerate(entries, 1):
            row = Row(entry)
            for name, cell in _cells(entry, tuple(formats) or tuple(FORMATS), child):
                row.cells[name] = cell
                tell(f"{number}/{len(entries)} {entry.name}: {name} {cell.words()[:200]} [{cell.seconds:.1f} s]")
            rows.append(row)
    return rows


def _cells(entry: Entry, formats: Sequence[str], child: ChildRuntime) -> Iterator[tuple[str, Cell]]:
    try:
        subject = _subject(entry)
    except TransformerBuilderError as error:
        yield from ((name, Cell(reason=_short(error))) for name in formats)
        return
    for name in formats:
        yield name, _cell(subject, name, child)


def _subject(entry: Entry) -> ExportSubject:
    torch.manual_seed(0)
    adapted = adapt(entry.build(), entry.config, entry.source, **entry.arguments)
    subject = subject_of(adapted)
    return ExportSubject(subject.adapted, subject.signature, None, subject.facts, samples_of(subject))


def _cell(subject: ExportSubject, format_name: str, child: ChildRuntime) -> Cell:
    begun = time.perf_counter()
    with TemporaryDirectory() as folder:
        try:
            artifact = exporter_for(format_name).stage(subject, Path(folder) / format_name, child)
        except ExportError as error:
            return Cell(reason=_short(error), seconds=time.perf_counter() - begun)
    return Cell(artifact.parity, seconds=time.perf_counter() - begun)


def _short(error: Exception) -> str:
    """The reason in one line: without the parity table, and without the advice that follows."""
    text = str(error).splitlines()[0] if isinstance(error, ParityError) else str(error).split("\nWhat to do")[0]
    return " ".join(text.split())


def table(rows: Sequence[Row]) -> str:
    """One row per model."""
    formats = list(rows[0].cells) if rows else []
    lines = [(row.entry.task, row.entry.name, *(_fitting(row.cells[name]) for name in formats)) for row in rows]
    return text_table(("task", "model", *formats), lines, width=240)


def _fitting(cell: Cell) -> str:
    return cell.words() if cell.kept else "refused"


def refusals(rows: Sequence[Row]) -> str:
    """Every refusal with its whole reason."""
    lines = [
        f"{row.entry.name} ({row.entry.task}), {name}: {cell.reason}{'' if cell.names_its_cause else '  <- NO CAUSE'}"
        for row in rows
        for name, cell in row.cells.items()
        if not cell.kept
    ]
    return "\n".join(lines) or "Nothing was refused."


def totals(rows: Sequence[Row]) -> str:
    """How many models each format holds."""
    lines = []
    for name in rows[0].cells if rows else ():
        kept = sum(row.cells[name].kept for row in rows)
        wanted = f", at least {REQUIRED[name]:.0%} wanted" if name in REQUIRED else ""
        lines.append(f"{name}: {kept} of {len(rows)} ({kept / len(rows):.0%}{wanted})")
    return "\n".join(lines)


def complaints(rows: Sequence[Row]) -> list[str]:
    """What is wrong with the matrix: refusals without a cause, and formats that hold too few models."""
    found = [
        f"{row.entry.name}: {name} is refused without naming operator, shape or convention: {cell.reason}"
        for row in rows
        for name, cell in row.cells.items()
        if not cell.names_its_cause
    ]
    for name, share in REQUIRED.items():
        cells = [row.cells[name] for row in rows if name in row.cells]
        if cells and sum(cell.kept for cell in cells) < share * len(cells):
            found.append(f"{name} holds {sum(cell.kept for cell in cells)} of {len(cells)} models, {share:.0%} wanted")
    return found
