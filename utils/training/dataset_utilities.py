"""From what a person passes as `data=` to documents: the doors `DatasetLoader`, `DatasetUploader` and `resolve_data`.

Decides what the given thing is; reading lies in `data_readers`, columns in `data_columns`, the Hub in `data_hub`, uploads in
`data_upload`. Leaves tokens and blocks to `utils.tokenization`.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, DataError
from utils.progress import Progress, ProgressCallback, showing
from utils.tokenization.documents import TEXT_COLUMNS, Documents, text_fingerprint
from utils.tokenization.hub_access import is_repository
from utils.tokenization.split import VALIDATION_FRACTION, split_documents, split_text
from utils.training.data_objects import DatasetRows, FrameRows, ListRows
from utils.training.data_readers import READERS
from utils.training.data_rows import load_parts, load_rows
from utils.training.data_sources import DataFile, file_in_memory, file_on_disk, is_data_name, known_kind, list_folder
from utils.training.data_upload import DatasetUploader, uploads_in
from utils.training.loaded_dataset import LoadedDataset, ReadOptions, ReadReport

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BUNDLED",
    "TEXT_COLUMNS",
    "WHAT_WORKS",
    "DatasetLoader",
    "DatasetUploader",
    "LoadedDataset",
    "TextData",
    "python_docs",
    "resolve_data",
    "split_documents",
    "split_text",
    "text_fingerprint",
]

logger = logging.getLogger(__name__)

MUCH_BYTES = 16 << 20
"""A file from which on reading shows its progress; smaller ones take a second."""

WHAT_WORKS = (
    "data= takes 'python-docs' (the bundled example), the path of a file or folder (txt, md, csv, tsv, json, jsonl, parquet, "
    "arrow), the name of a Hub data set ('owner/name'), an upload, a list of texts or rows, {'train': list, 'validation': "
    "list}, a pandas.DataFrame, or a datasets.Dataset or DatasetDict"
)


@dataclass(frozen=True)
class TextData:
    """Documents ready for tokenisation.

    Attributes:
        name: where the text came from, for people.
        train, validation: documents of the two parts; they share no text, unless the data brings its own validation.
        how: how they were split, in words.
    """

    name: str
    train: Documents
    validation: Documents
    how: str = "validation comes with the data"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both parts: equal only for equal documents in equal order."""
        return text_fingerprint(itertools.chain(self.train, ["\0"], self.validation))

    @property
    def train_bytes(self) -> bytes:
        """Training text as UTF-8."""
        return "\n".join(self.train).encode()

    @property
    def validation_bytes(self) -> bytes:
        """Validation text as UTF-8."""
        return "\n".join(self.validation).encode()


def python_docs() -> str:
    """The English documentation text that ships inside every Python (about half a megabyte), in one fixed order.

    The text differs a little between Python versions; figures are comparable only within one.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


BUNDLED: dict[str, Callable[[], str]] = {"python-docs": python_docs}
"""Examples that need no download."""


def resolve_data(data: Any, validation_fraction: float = VALIDATION_FRACTION, **options: Any) -> TextData:
    """Turn what was passed as `data=` into documents for training and validation.

    A validation part that the data itself sets aside is kept; otherwise `tokenization.split.split_documents` makes one, the
    same in every run.

    Args:
        data: as in `DatasetLoader.from_anything`, or a `TextData`, which is given back.
        validation_fraction: share of the text that is kept for validation.
        **options: as in `DatasetLoader.from_anything`.

    Raises:
        DataError: nothing here can be read as text; the message says what works.
    """
    if isinstance(data, TextData):
        return data
    loaded = DatasetLoader.from_anything(data, **{"progress": False, **options})
    if loaded.validation is not None:
        return TextData(loaded.name, loaded.documents, loaded.validation.documents)
    split = split_documents(loaded.documents, validation_fraction)
    if split.copies or split.empty:
        logger.info(
            "%d copies stay on one side of the split, %d empty documents are left out", split.copies, split.empty
        )
    return TextData(loaded.name, split.train, split.validation, split.how)


class DatasetLoader:
    """Reads data of any kind into a `LoadedDataset`.

    Every method takes the options of `ReadOptions` as keywords, among them `column=` (the text), `label_column=`,
    `target_column=`, `split=`, `split_on=`, `encoding=` and `max_documents=`, and `progress=` (True shows a display while
    much is read, False none; or a callable). A failure leaves nothing half-loaded.

    Example:
        >>> data = DatasetLoader.from_anything("reviews.csv", label_column="auto")
        >>> print(data.summary())
    """

    @staticmethod
    def from_anything(data: Any, *, progress: bool | ProgressCallback = True, **options: Any) -> LoadedDataset:
        """Read whatever was passed as `data=`.

        A string is a bundled name, else the path of an existing file or folder, else the name of a Hub data set in the form
        "owner/name", else an error with the nearest name: text itself goes into a list, so that a mistyped path is never
        trained on.

        Args:
            data: name, path, upload, list of texts or of rows (mappings), {"train": list, "validation": list}, `pandas.DataFrame`, `datasets.Dataset`,
                `IterableDataset` or `DatasetDict`, or a `LoadedDataset`, which is given back.
            progress: see the class.
            **options: see `ReadOptions`.

        Raises:
            DataError: it cannot be read; the message says what works.
        """
        if isinstance(data, LoadedDataset):
            return data
        if isinstance(data, (str, Path)):
            return _from_name(data, progress, options)
        if isinstance(data, (bytes, bytearray, memoryview)):
            raise DataError(
                f"data of type {type(data).__name__} is not text: nobody knows its kind. Name it: "
                "DatasetLoader.from_uploaded_file(data, file_format='txt')."
            )
        return _from_object(data, options) or _from_uploads(data, progress, options)

    @staticmethod
    def from_file(path: str | Path, *, progress: bool | ProgressCallback = True, **options: Any) -> LoadedDataset:
        """Read one file: txt, md, csv, tsv, json, jsonl, parquet or arrow.

        Raises:
            DataError: it cannot be read, or its columns are not clear.
        """
        file = file_on_disk(_expanded(path))
        return _from_files(file.name, {"": [file]}, _options(options), progress)

    @staticmethod
    def from_folder(path: str | Path, *, progress: bool | ProgressCallback = True, **options: Any) -> LoadedDataset:
        """Read all data files below a folder, in the order of their names; they must be of one kind (`pattern=`).

        Each text file is a document of its own; one that cannot be read is reported as a rejected row. Tables belong
        together: one that fails fails the whole. Files whose names speak of train, validation and test are kept apart.

        Raises:
            DataError: there is no data, or several kinds of it; or as in `from_file`.
        """
        root = _expanded(path)
        if not root.is_dir():
            raise DataError(f"{root} is no folder; DatasetLoader.from_file(path) reads a single file.")
        settings = _options(options)
        folder = list_folder(root, settings.pattern)
        files: dict[str, list[DataFile]] = {}
        faults: list[str] = []
        for part, group in folder.files.items():
            files[part] = [
                file for place, name in group if (file := _usable(place, name, folder.kind, faults)) is not None
            ]
        if not any(files.values()):
            raise DataError(f"No file of {root} can be read. {' '.join(faults[:3])}")
        return _from_files(root.name or str(root), files, settings, progress, [*folder.skipped, *faults[:20]])

    @staticmethod
    def from_uploaded_file(
        file_data: Any, file_format: str = "txt", *, progress: bool | ProgressCallback = True, **options: Any
    ) -> LoadedDataset:
        """Read content that was uploaded.

        Args:
            file_data: bytes, text, an opened file, or what `google.colab.files.upload()` or the value of a FileUpload widget
                holds (one file; its own name says the format then).
            file_format: "txt", "md", "csv", "tsv", "json", "jsonl", "parquet" or "arrow".
            progress: see the class.
            **options: see `ReadOptions`.

        Raises:
            DataError: nothing was uploaded, or it cannot be read.
        """
        if isinstance(file_data, str):
            file_data = file_data.encode("utf-8", "surrogatepass")
        if hasattr(file_data, "read"):
            content = file_data.read()
            file_data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        if isinstance(file_data, (bytes, bytearray, memoryview)):
            kind = known_kind(file_format)
            file = file_in_memory(f"upload.{file_format.lower().lstrip('.')}", bytes(file_data), kind)
            return _from_files("upload", {"": [file]}, _options(options), progress)
        return _from_uploads(file_data, progress, options)

    @staticmethod
    def from_huggingface(
        dataset_name: str, config_name: str | None = None, *, progress: bool | ProgressCallback = True, **options: Any
    ) -> LoadedDataset:
        """Read a data set of the Hugging Face Hub from its data files (parquet, csv, json lines, text).

        Nothing of it runs: a data set that needs its own script is refused, with the way out. Files are downloaded one after
        another into the Hub's cache; with `max_documents=` no more of them than that needs.

        Args:
            dataset_name: "owner/name".
            config_name: configuration, where there are several and none is the default.
            progress: see the class.
            **options: see `ReadOptions`; `split=` and `revision=` among them.

        Raises:
            DataError: it does not exist, is gated, cannot be reached, does not fit, or is not clear; the message says how on.
        """
        from utils.training.data_hub import load_from_hub

        settings = _options({**options, "config_name": config_name})
        with _display(progress, "Reading") as report:
            return load_from_hub(dataset_name, settings, report)

    @staticmethod
    def prepare_for_training(
        dataset: Any, tokenizer: PreTrainedTokenizerBase, max_length: int = 512, **options: Any
    ) -> Any:
        """Tokenise a data set and pack it into full blocks, which loaders take as they are.

        Args:
            dataset: what this class gave, or anything that `from_anything` takes.
            tokenizer: turns text into ids; its end-of-text token ends each document.
            max_length: tokens per block.
            **options: see `ReadOptions`.

        Returns:
            `utils.tokenization.packing.PackedBlocks`: items with `input_ids` and `labels`, each (max_length,).

        Raises:
            DataError: too little text for one block, or as in `from_anything`.
        """
        from utils.tokenization.packing import pack_documents

        loaded = DatasetLoader.from_anything(dataset, **{"progress": False, **options})
        return pack_documents(loaded.documents, tokenizer, max_length)


def _from_name(data: str | Path, progress: bool | ProgressCallback, options: Mapping[str, Any]) -> LoadedDataset:
    if isinstance(data, str) and data in BUNDLED:
        return load_rows(data, [ListRows([BUNDLED[data]()], data, WHAT_WORKS)], _options(options))
    path = _existing(data)
    if path is not None:
        read = DatasetLoader.from_folder if path.is_dir() else DatasetLoader.from_file
        return read(path, progress=progress, **options)
    name = str(data)
    if isinstance(data, str) and name.count("/") == 1 and is_repository(name) and not is_data_name(name):
        return DatasetLoader.from_huggingface(name, progress=progress, **options)
    shown = name if len(name) <= 60 else name[:57] + "..."
    near = difflib.get_close_matches(name, [*BUNDLED, *_neighbours(name)], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else " To train on this very text, put it into a list: data=[text]."
    raise DataError(f"{shown!r} is neither a bundled example nor an existing file.{hint} {WHAT_WORKS}.")


def _from_object(data: Any, options: Mapping[str, Any]) -> LoadedDataset | None:
    """What programs hold; None for uploads and for what is none of these."""
    settings = _options(options)
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "itertuples"):
        return load_rows("data frame", [FrameRows(data)], settings)
    if type(data).__module__.split(".")[0] in ("pandas", "numpy") and getattr(data, "ndim", 0) == 1:
        data = data.tolist()  # a column or array of texts
    if isinstance(data, Mapping) and data and all(hasattr(part, "column_names") for part in data.values()):
        return load_parts("data set", {str(part): [DatasetRows(rows)] for part, rows in data.items()}, settings)
    if isinstance(data, Mapping) and "train" in data and all(_is_list(part) for part in data.values()):
        lists = {str(part): [ListRows(rows, str(part), WHAT_WORKS)] for part, rows in data.items()}
        return load_parts("lists", lists, settings)
    if isinstance(data, Mapping) and not data and hasattr(data, "column_names"):
        raise DataError(f"The {type(data).__name__} is empty. {WHAT_WORKS}.")
    if not isinstance(data, Mapping) and hasattr(data, "column_names") and hasattr(data, "with_format"):
        return load_rows("data set", [DatasetRows(data)], settings)
    if uploads_in(data) is not None or not isinstance(data, Sequence):
        return None
    if not len(data):
        raise DataError(f"The list of texts is empty. {WHAT_WORKS}.")
    if all(isinstance(item, (str, Path)) and is_data_name(str(item)) and _existing(item) for item in data):
        raise DataError(
            f"The list holds the names of files ({str(data[0])!r}), not texts. Put the files into a folder and pass that, or "
            "pass one file; to train on the names themselves, join them into one text."
        )
    return load_rows(f"{len(data):,} texts", [ListRows(data, "list", WHAT_WORKS)], settings)


def _is_list(part: Any) -> bool:
    return isinstance(part, Sequence) and not isinstance(part, (str, bytes, bytearray, memoryview)) and len(part) > 0


def _from_uploads(data: Any, progress: bool | ProgressCallback, options: Mapping[str, Any]) -> LoadedDataset:
    uploads = uploads_in(data)
    if uploads is None:
        raise DataError(f"data of type {type(data).__name__} is not text. {WHAT_WORKS}.")
    if not uploads:
        raise DataError(
            "Nothing was uploaded (the dialog was closed, or no file was chosen). Upload a file and try again."
        )
    files = [file_in_memory(name, content) for name, content in uploads.items()]
    if len({file.kind for file in files}) > 1:
        raise DataError(f"The uploaded files are of several kinds: {', '.join(uploads)}. Upload those of one kind.")
    name = files[0].name if len(files) == 1 else f"{len(files)} uploaded files"
    return _from_files(name, {"": files}, _options(options), progress)


def _from_files(
    name: str,
    parts: Mapping[str, Iterable[DataFile]],
    options: ReadOptions,
    progress: bool | ProgressCallback,
    notes: Sequence[str] = (),
) -> LoadedDataset:
    with _display(progress, "Reading") as report:
        scratch = ReadReport(name)  # what readers note before the report of their part is there
        sources = {
            part: [READERS[file.kind](file, options, scratch, report) for file in files]
            for part, files in parts.items()
        }
        loaded = load_parts(name, sources, options, notes)
    for text in scratch.notes:
        loaded.report.note(text)
    for text in scratch.warnings:
        logger.warning("%s", text)
        loaded.report.note(text, warning=True)
    return loaded


def _usable(path: Path, name: str, kind: str, faults: list[str]) -> DataFile | None:
    """A file of a folder; a text file that is none is noted, a table raises."""
    try:
        return file_on_disk(path, name, kind)
    except DataError as error:
        if kind != "txt":
            raise
        faults.append(f"left out: {error}")
        return None


def _options(options: Mapping[str, Any]) -> ReadOptions:
    """Options by name; an unknown one is an error with the nearest."""
    known = ReadOptions.names()
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{unknown!r} is no option for reading data.{hint} There are: {', '.join(known)}.")
    settings = ReadOptions(**options)
    settings.check()
    return settings


def _existing(data: str | Path) -> Path | None:
    """The path where something lies there; None for text that cannot be one (too long, NUL, line breaks)."""
    try:
        path = Path(data).expanduser()
        return path if os.path.lexists(path) else None
    except (OSError, ValueError, RuntimeError):  # name too long, embedded NUL, no home folder
        return None


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path} cannot be found: {error}.") from error


def _neighbours(name: str) -> list[str]:
    """Files beside the one that was meant."""
    try:
        path = Path(name).expanduser()
        return [str(path.parent / entry.name) if "/" in name else entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError, RuntimeError):
        return []


@contextmanager
def _display(progress: bool | ProgressCallback, title: str) -> Iterator[ProgressCallback]:
    """What reading reports to; the display that True asks for opens once a file of `MUCH_BYTES` is met."""
    if progress is not True:
        with showing(progress, title) as report:
            yield report
        return
    with ExitStack() as stack:
        opened: list[Progress] = []

        def report_much(done: int, total: int | None, note: str) -> None:
            if (total or 0) < MUCH_BYTES:
                return
            if not opened:
                opened.append(stack.enter_context(Progress(title, total, "bytes")))
            opened[0](done, total, note)

        yield report_much
