"""From what a person passes as `data=` to a stream: which files are read, in which order, and by which of `datasets`' readers.

Reads no text itself; `tokenization.streaming` does, while a model is trained.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from utils._extras import require
from utils.errors import DataError
from utils.tokenization import streaming
from utils.tokenization.documents import chosen_column
from utils.tokenization.streaming import StreamedText, text_of
from utils.training.data_sources import KINDS, file_on_disk, list_folder
from utils.training.dataset_utilities import BUNDLED
from utils.training.loaded_dataset import ReadOptions

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "txt": ("text", {}),
    "csv": ("csv", {}),
    "tsv": ("csv", {"sep": "\t"}),
    "json": ("json", {}),
    "jsonl": ("json", {}),
    "parquet": ("parquet", {}),
    "arrow": ("arrow", {}),
}
"""Kind of file → reader of `datasets`, and how it reads."""

LOOK_BYTES = 4 << 20
"""Of a text file that are looked at for blank lines."""


def is_stream(data: Any) -> bool:
    """Whether data can be read forward only."""
    library = sys.modules.get("datasets")  # whoever holds one has imported it
    if isinstance(data, Mapping):
        data = data.get("train")
    return isinstance(data, StreamedText) or (library is not None and isinstance(data, library.IterableDataset))


def validation_of(data: Any) -> Any:
    """The validation part that data with a stream for training bring themselves, as texts; None where they bring none.

    Of a stream the first texts are taken, as many as are kept back of one.

    Raises:
        DataError: a row without text.
    """
    given = data.get("validation") if isinstance(data, Mapping) else None
    if isinstance(given, StreamedText):
        return given.held_back
    if not is_stream(given):
        return given
    texts: list[str] = []
    size = 0
    for row in given:  # type: ignore[union-attr]
        texts.append(text_of(row, chosen_column(list(row), None), "the validation data"))
        size += len(texts[-1])
        if size >= streaming.HELD_BACK_CHARACTERS:
            break
    return texts


def open_stream(data: Any, column: str | None = None, revision: str | None = None) -> StreamedText:
    """The text of files, of a data set of the Hub, or of a `datasets.IterableDataset`, as a stream.

    Args:
        data: a path of a file or of a folder whose files are read in the order of their names; "owner/name" of the Hub, at
            its present commit; a `datasets.IterableDataset`; a mapping with one as "train"; or a `StreamedText`, which is
            given back.
        column: the column that holds text; None takes a usual name, or the only one.
        revision: commit, branch or tag of a data set of the Hub; None takes its present commit.

    Raises:
        DataError: nothing that can be read forward, a file that is not what its name says, or as `StreamedText` says.

    Example:
        >>> utils.train(model, open_stream("shards/"), TrainingConfig(max_steps=50_000))
    """
    if isinstance(data, Mapping) and "train" in data:
        data = data["train"]
    if isinstance(data, StreamedText):
        return data
    require("datasets", extra="training", feature="Streaming")
    if is_stream(data):
        return StreamedText(data, column)
    if not isinstance(data, (str, Path)):
        raise DataError(
            f"A {type(data).__name__} lies in memory and is no stream: leave stream_data out. Streams are files, folders, data "
            "sets of the Hub, and a datasets.IterableDataset."
        )
    if data in BUNDLED:
        raise DataError(f"{data!r} lies in memory and is no stream: leave stream_data out.")
    path = Path(data).expanduser()
    if path.exists():
        kind, files = stream_files(path)
        for file in files:
            if file.stat().st_size:  # a shard without rows is none the worse for it
                file_on_disk(file, kind=kind)
        identity = ", ".join(f"{name} {size}" for name, size in sizes_of(path).items())
        return _opened(str(data), kind, [str(file) for file in files], column, identity)
    return _from_hub(str(data), column, revision)


def stream_files(path: Path) -> tuple[str, list[Path]]:
    """The kind of a file, or of the training files of a folder, and those files in the order in which they are read.

    Raises:
        DataError: there are none, or several kinds.
    """
    if not path.is_dir():
        return file_on_disk(path).kind, [path]
    folder = list_folder(path)
    return folder.kind, [file for file, _ in folder.files.get("train", folder.files.get("", []))]


def sizes_of(path: Path) -> dict[str, int]:
    """Name → bytes of the files that are streamed: what tells them from others at once, while hashing may take hours."""
    root = path if path.is_dir() else path.parent
    return {file.relative_to(root).as_posix(): file.stat().st_size for file in stream_files(path)[1]}


def _from_hub(name: str, column: str | None, revision: str | None) -> StreamedText:
    """The training files of a data set at one commit; nothing of it runs, and nothing is kept on disk."""
    from utils.training.data_hub import training_files

    listing, files = training_files(name, ReadOptions(revision=revision))
    addresses = [f"hf://datasets/{name}@{listing.commit}/{file}" for file in files]
    return _opened(name, KINDS[PurePosixPath(files[0]).suffix.lower()], addresses, column, listing.commit)


def _opened(name: str, kind: str, files: Sequence[str], column: str | None, identity: str) -> StreamedText:
    import datasets

    reader, how = _READERS[kind]
    if kind == "txt":
        how = {"sample_by": "paragraph" if _has_blank_lines(files[0]) else "line"}
    rows = datasets.load_dataset(reader, data_files=list(files), split="train", streaming=True, **how)
    return StreamedText(rows, column, name, identity)


def _has_blank_lines(file: str) -> bool:
    """Whether a text file is cut into paragraphs; else a line is a document, since the whole file would be one."""
    import fsspec  # type: ignore[import-untyped]

    with fsspec.open(file, "rb") as opened:
        return re.search(rb"\n\r?\n", opened.read(LOOK_BYTES)) is not None
