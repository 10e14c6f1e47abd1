"""Rows out of what already lies in memory: lists, data frames, data sets of `datasets`. Opens no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from utils.errors import DataError

BATCH_ROWS = 256
"""Rows that are taken from a data set at a time."""

Row = dict[str, Any]
Reject = Callable[[int, str, str], None]


class RowSource(Protocol):
    """What gives numbered rows; `data_readers.RecordReader` is one too.

    Attributes:
        name: for messages.
        is_table: whether every row has every column.
        label_names: names of class numbers by column, where the data itself has them.
    """

    is_table: bool

    @property
    def name(self) -> str: ...

    @property
    def label_names(self) -> Mapping[str, Sequence[str]]: ...

    def rows(self, reject: Reject, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
        """Numbered rows; `columns` are those that are wanted, None for all."""
        ...


class ListRows:
    """A list of texts (column "text") or of mappings."""

    is_table = False
    label_names: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, items: Sequence[Any], name: str, what_works: str) -> None:
        self.items, self.name, self.what_works = items, name, what_works

    def rows(self, reject: Reject, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
        """See `RowSource.rows`; an item of another type than the first is an error, as lists are written by programs."""
        mappings = bool(self.items) and isinstance(self.items[0], Mapping)
        for number, item in enumerate(self.items, 1):
            if not isinstance(item, Mapping if mappings else str):
                raise DataError(
                    f"Item {number - 1} of the list is of type {type(item).__name__}, not {'a row' if mappings else 'text'}. "
                    f"{self.what_works}."
                )
            yield number, _row(item)


class FrameRows:
    """Rows of a pandas data frame; missing values become None."""

    is_table = True
    label_names: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, frame: Any, name: str = "data frame") -> None:
        self.frame, self.name = frame, name
        self.names = [str(column) for column in frame.columns]
        if len(set(self.names)) != len(self.names):
            raise DataError("The data frame has two columns of one name; rename one of them.")

    def rows(self, reject: Reject, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
        """See `RowSource.rows`."""
        kept = [place for place, name in enumerate(self.names) if columns is None or name in columns]
        frame = self.frame.iloc[:, kept]
        for number, values in enumerate(frame.itertuples(index=False, name=None), 1):
            yield number, {self.names[place]: _plain(value) for place, value in zip(kept, values)}


class DatasetRows:
    """Rows of a `datasets.Dataset` or `IterableDataset`, a few hundred at a time, of the wanted columns only."""

    is_table = True

    def __init__(self, dataset: Any, name: str = "data set") -> None:
        self.dataset, self.name = dataset, name
        features = getattr(dataset, "features", None) or {}
        self.label_names: Mapping[str, Sequence[str]] = {
            column: tuple(feature.names) for column, feature in features.items() if getattr(feature, "names", None)
        }

    def rows(self, reject: Reject, columns: list[str] | None = None) -> Iterator[tuple[int, Row]]:
        """See `RowSource.rows`."""
        dataset = self.dataset
        known = dataset.column_names
        wanted = [name for name in known or [] if columns is None or name in columns]
        if known is not None:
            dataset = dataset.select_columns(wanted)
        number = 0
        for batch in dataset.with_format(None).iter(batch_size=BATCH_ROWS):
            names = list(batch)
            for values in zip(*(batch[name] for name in names), strict=True):
                number += 1
                yield number, dict(zip(names, values, strict=True))


def _row(item: str | Mapping[Any, Any]) -> Row:
    return {"text": item} if isinstance(item, str) else {str(key): value for key, value in item.items()}


def _plain(value: Any) -> Any:
    """A cell in plain types: missing values are None, numpy scalars are numbers."""
    if value is None or isinstance(value, (str, dict, list)):
        return value
    if type(value).__name__ in ("NAType", "NaTType") or value != value:  # NaN is unequal to itself
        return None
    return value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
