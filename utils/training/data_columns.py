"""Which column of a table is the text, and which holds labels. Decides from the first rows; reads no files.

The rule for text, in this order: the column that was named; the only column with text; the one that is called as in
`TEXT_COLUMNS`; the only one with running text, where the others are short (identifiers, dates, labels). Otherwise the person
is asked: an error lists the candidates with a preview.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from utils.errors import ColumnChoiceError, DataError
from utils.tokenization.documents import TEXT_COLUMNS
from utils.training.loaded_dataset import ColumnChoice, Preview, ReadOptions

LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic")
"""Column names that are taken for class labels by `label_column="auto"`."""
MAX_LABELS = 1000
"""Distinct values of a column of class labels; more are no classes."""
RUNNING_TEXT = 40
"""Mean characters of a value from which on a column counts as running text, provided that its values hold blanks."""
MAX_DEPTH = 3
"""Levels of nested columns that are looked into."""

Row = dict[str, Any]


def choose_columns(rows: Sequence[Row], options: ReadOptions, where: str) -> ColumnChoice:
    """Decide from the first rows.

    Args:
        rows: the first rows as they were read.
        options: the columns that the person named.
        where: name of the data, for messages.

    Raises:
        DataError: no column with text, several, or a named one that is not there.
    """
    flat = [flatten(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    texts = [name for name in names if _holds_text([row.get(name) for row in flat])]
    preview = Preview.of(rows)
    labels = _label_candidates(flat, names)
    target = _named(options.target_column, names, where, preview) if options.target_column else ""
    label = _label(options.label_column, labels, names, where, preview)
    free = [name for name in texts if name not in (target, label)]
    if options.column is not None:
        text, reason = _named(options.column, names, where, preview), "as named"
    else:
        text, reason = _text_column(free, flat, where, names, preview)
    if text in (target, label):
        raise DataError(
            f"Column {text!r} of {where} cannot be the text and {'target' if text == target else 'label'} at once."
        )
    others = tuple(name for name in free if name != text)
    return ColumnChoice(text, reason, others, label, target, tuple(name for name in labels if name != text))


def value_at(row: Row, name: str) -> Any:
    """The value of a column; a dot leads into a nested one, where no column is called so."""
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    inner = row.get(head)
    return value_at(inner, rest) if rest and isinstance(inner, dict) else None


def flatten(row: Row, prefix: str = "", depth: int = 1) -> Row:
    """A row whose nested objects became columns with dotted names."""
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, dict) and depth < MAX_DEPTH:
            flat |= flatten(value, f"{prefix}{name}.", depth + 1)
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _holds_text(values: Sequence[Any]) -> bool:
    """Whether text is what most of a column holds, gaps left out; its other values become rejected rows."""
    there = [value for value in values if value is not None and value != ""]
    texts = [value for value in there if isinstance(value, str)]
    return 2 * len(texts) > len(there) and not all(_is_number(text) for text in texts)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text_column(
    texts: Sequence[str], flat: Sequence[Row], where: str, names: Sequence[str], preview: Preview
) -> tuple[str, str]:
    if not texts:
        raise DataError(f"{where} has no column with text. {_overview(names, preview)}")
    if len(texts) == 1:
        return texts[0], "the only column with text"
    called = next((name for name in TEXT_COLUMNS if name in texts), None)
    if called is not None:
        return called, f"it is called {called!r}"
    lengths = {name: _mean_length([row.get(name) for row in flat]) for name in texts}
    running = [name for name in texts if lengths[name] >= RUNNING_TEXT and _has_blanks([row.get(name) for row in flat])]
    if len(running) == 1:
        others = ", ".join(f"{name!r} {lengths[name]:.0f}" for name in texts if name != running[0])
        return running[
            0
        ], f"the only one with running text: {lengths[running[0]]:.0f} characters on average, against {others}"
    raise ColumnChoiceError(
        f"{where} has several columns with text: {', '.join(map(repr, texts))}. Say which one: column='{texts[0]}'. "
        f"{_overview(names, preview)}",
        tuple(texts),
        preview.columns,
        preview.rows,
    )


def _mean_length(values: Sequence[Any]) -> float:
    lengths = [len(value) for value in values if isinstance(value, str) and value]
    return sum(lengths) / max(len(lengths), 1)


def _has_blanks(values: Sequence[Any]) -> bool:
    texts = [value for value in values if isinstance(value, str) and value]
    return sum(" " in value.strip() for value in texts) > len(texts) / 2


def _named(name: str, names: Sequence[str], where: str, preview: Preview) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6) or [
        other for other in names if other.strip().casefold() == name.strip().casefold()
    ]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{where} has no column {name!r}.{hint} {_overview(names, preview)}")


def _label(wanted: str | None, candidates: Sequence[str], names: Sequence[str], where: str, preview: Preview) -> str:
    if wanted is None:
        return ""
    if wanted != "auto":
        return _named(wanted, names, where, preview)
    called = [name for name in candidates if name.casefold() in LABEL_COLUMNS]
    if len(called) == 1 or (not called and len(candidates) == 1):
        return (called or list(candidates))[0]
    found = f"several that could be: {', '.join(map(repr, candidates))}" if candidates else "none that looks like one"
    raise DataError(
        f"Which column of {where} holds the labels? There are {found}. Say which: label_column='...'. {_overview(names, preview)}"
    )


def _label_candidates(flat: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Columns of whole numbers or short texts with few distinct values, or called like a label."""
    found = []
    for name in names:
        values = [row.get(name) for row in flat if row.get(name) not in (None, "")]
        if not values or not all(isinstance(value, (int, str)) for value in values):
            continue
        distinct = len(set(values))
        short = all(len(str(value)) <= RUNNING_TEXT for value in values)
        if short and (name.casefold() in LABEL_COLUMNS or 2 * distinct <= len(values)) and distinct <= MAX_LABELS:
            found.append(name)
    return found


def _overview(names: Sequence[str], preview: Preview) -> str:
    """The columns, and the first rows below."""
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    shown = Preview(preview.columns[:6], tuple(row[:6] for row in preview.rows[:3]))
    return f"Columns: {', '.join(map(repr, names[:30]))}{more}. First rows:\n{shown.summary()}"
