"""From what a person passes as `data=` to a stream: which files are read, in which order, and by which of `datasets`' readers.

Reads no text itself; `tokenization.streaming` does, while a model is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from utils._extras import require
from utils.errors import DataError
from utils.tokenization.streaming import StreamedText
from utils.training.data_sources import KINDS, file_on_disk, list_folder
from utils.training.loaded_dataset import ReadOptions

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "txt": ("text", {"sample_by": "paragraph"}),
    "csv": ("csv", {}),
    "tsv": ("csv", {"sep": "\t"}),
    "json": ("json", {}),
    "jsonl": ("json", {}),
    "parquet": ("parquet", {}),
    "arrow": ("arrow", {}),
}
"""Kind of file → reader of `datasets`, and how it reads: a paragraph of a text file is a document."""


def is_stream(data: Any) -> bool:
    """Whether data can be read forward only."""
    library = sys.modules.get("datasets")  # whoever holds one has imported it
    if isinstance(data, Mapping):
        data = data.get("train")
    return isinstance(data, StreamedText) or (library is not None and isinstance(data, library.IterableDataset))


def validation_of(data: Any) -> Any:
    """The validation part that data with a stream for training bring themselves, as texts; None where they bring none."""
    given = data.get("validation") if isinstance(data, Mapping) else None
    return open_stream(given).held_back if is_stream(given) else given


def open_stream(data: Any, column: str | None = None, revision: str | None = None) -> StreamedText:
    """The text of files, of a data set of the Hub, or of a `datasets.IterableDataset`, as a stream.

    Args:
        data: a path of a file or of a folder whose files are read in the order of their names; "owner/name" of the Hub, at
            its present commit; a `datasets.IterableDataset`; a mapping with one as "train"; or a `StreamedText`, which is
            given back.
        column: the column that holds text; None takes a usual name, or the only one.
        revision: commit, branch or tag of a data set of the Hub; None takes its present commit.

    Raises:
        DataError: nothing that can be read forward, or as `StreamedText` says.

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
    path = Path(data).expanduser()
    if path.is_dir():
        folder = list_folder(path)
        chosen = folder.files.get("train", folder.files.get("", []))
        return _opened(
            str(data), folder.kind, [str(file) for file, _ in chosen], column, _sizes([p for p, _ in chosen])
        )
    if path.exists():
        return _opened(str(data), file_on_disk(path).kind, [str(path)], column, _sizes([path]))
    return _from_hub(str(data), column, revision)


def _from_hub(name: str, column: str | None, revision: str | None) -> StreamedText:
    """The training files of a data set at one commit; nothing of it runs, and nothing is kept on disk."""
    from utils.training.data_hub import training_files

    listing, files = training_files(name, ReadOptions(revision=revision))
    addresses = [f"hf://datasets/{name}@{listing.commit}/{file}" for file in files]
    return _opened(name, KINDS[PurePosixPath(files[0]).suffix.lower()], addresses, column, listing.commit)


def _sizes(files: Sequence[Path]) -> str:
    """What tells files from others of the same name, at once: hashing them may take as long as training on them."""
    return ", ".join(f"{file.name} {file.stat().st_size}" for file in files)


def _opened(name: str, kind: str, files: Sequence[str], column: str | None, identity: str) -> StreamedText:
    import datasets

    reader, how = _READERS[kind]
    rows = datasets.load_dataset(reader, data_files=list(files), split="train", streaming=True, **how)
    return StreamedText(rows, column, name, identity)
