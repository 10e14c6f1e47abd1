"""The outcome of completing an export: what was added, on which evidence, and the source before and after."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from utils._files import write_text
from utils._tables import html_table, text_table
from utils.adapters.forward_source import unified_diff

EVIDENCE = {
    1: "edge of the canvas",
    2: "comment of the node",
    3: "statement that is there",
    4: "module that exists",
    5: "convention",
}
"""Kinds of evidence, strongest first; the weaker speaks only where the stronger is silent."""


@dataclass(frozen=True)
class Completion:
    """One thing that the export left out, or wrote wrongly.

    Attributes:
        name: the value or node concerned.
        expression: what it is now, as source.
        evidence: level in `EVIDENCE`.
        reason: why, in words.
        assumption: whether another reading was possible, so that a person should look.
    """

    name: str
    expression: str
    evidence: int
    reason: str
    assumption: bool = False

    def row(self) -> tuple[str, str, str, str]:
        """Cells of the table of completions."""
        mark = "assumption: " if self.assumption else ""
        return self.name, self.expression, EVIDENCE[self.evidence], mark + self.reason


@dataclass
class GraphCompletion:
    """What became of a model's source.

    Attributes:
        model: an ordinary module with the original's parameters; the model itself where nothing had to be completed.
        status: "direct" (runs as it came) or "completed".
        completions: what was completed, in the order of execution.
        source_before: the text as it came; empty where none could be read.
        source_after: the text that runs.
        file_name: name of the source file, for the diff.
    """

    model: nn.Module = field(repr=False)
    status: str = "direct"
    completions: tuple[Completion, ...] = ()
    source_before: str = field(default="", repr=False)
    source_after: str = field(default="", repr=False)
    file_name: str = "model.py"

    _COLUMNS = ("what", "completed as", "evidence", "why")

    @classmethod
    def direct(cls, model: nn.Module, source: str = "", file_name: str = "model.py") -> GraphCompletion:
        """The outcome for a model that runs as it came."""
        return cls(model, source_before=source, source_after=source, file_name=file_name)

    @property
    def diff(self) -> str:
        """Unified diff from the source as it came to the source that runs; empty for a direct model."""
        return unified_diff(self.source_before, self.source_after, self.file_name)

    @property
    def assumptions(self) -> tuple[Completion, ...]:
        """Completions for which another reading was possible."""
        return tuple(completion for completion in self.completions if completion.assumption)

    def save(self, path: str | Path) -> Path:
        """Write the source that runs to `path`; an existing file is replaced only when the new one is complete."""
        return write_text(path, self.source_after)

    def summary(self) -> str:
        """Table of the completions as text."""
        if self.status == "direct":
            return "The model runs as it came: nothing was completed."
        title = f"What the export left out: {len(self.completions)} completions, {len(self.assumptions)} of them assumptions"
        return text_table(self._COLUMNS, [completion.row() for completion in self.completions], title=title, width=140)

    def _repr_html_(self) -> str:
        if self.status == "direct":
            return f"<p>{html.escape(self.summary())}</p>"
        rows = [completion.row() for completion in self.completions]
        return (
            f"<h4>What your export left out</h4>{html_table(self._COLUMNS, rows)}"
            f"<details><summary>Difference</summary><pre>{html.escape(self.diff)}</pre></details>"
        )
