"""One table, three views: plain text for terminals and logs, escaped HTML for pages, escaped Markdown for model cards."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", width: int = 110) -> str:
    """Render rows as an aligned plain-text table of at most `width` characters; long cells are folded.

    The title stands above in a line of its own, unfolded, so that paths in it can be copied. Markup characters are shown
    as they are.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False, box=None)
    for column in columns:
        table.add_column(Text(str(column), style="bold"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join([*([title] if title else []), *(line.rstrip() for line in lines)])


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, classes: Sequence[str] = ()) -> str:
    """Render rows as an HTML table; every cell is escaped. `classes` gives one CSS class per row, where given."""
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in columns)
    lines = []
    for index, row in enumerate(rows):
        css = f' class="{html.escape(classes[index])}"' if index < len(classes) and classes[index] else ""
        lines.append(f"<tr{css}>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>")
    return f'<table class="tb-table"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Render rows as a table of GitHub's Markdown; every cell is escaped."""
    lines = [[markdown_text(column) for column in columns], ["---"] * len(columns)]
    lines += [[markdown_text(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown_text(text: object) -> str:
    """Text that Markdown shows as it is, in one line: no markup, no HTML, no link that was not meant."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", line)
    return line.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def markdown_code(text: str, language: str = "") -> str:
    """A block of code that ends where it should, whatever it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
