"""Files that a person uploads: Colab's dialog, and the FileUpload widget of ipywidgets 7 and 8.

The two generations of the widget hold uploads in different shapes; `uploads_in` is the one place that knows them. Reading
the content is left to `dataset_utilities`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from utils._extras import require
from utils.errors import DataError
from utils.training.data_sources import KINDS
from utils.training.loaded_dataset import LoadedDataset

logger = logging.getLogger(__name__)

MAX_WIDGET_BYTES = 8 << 20
"""The browser sends a widget's files through the kernel's websocket, which ends silently above about 10 MB."""

_RENAMED = re.compile(r"^(?P<stem>.+) \(\d+\)(?P<suffix>\.\w+)?$")


def uploads_in(value: Any) -> dict[str, bytes] | None:
    """Name → content of what was uploaded; None where `value` is no upload at all.

    Takes a FileUpload widget or its value (7: a dict of name → {"content", "metadata"}; 8: a tuple of dicts with "name" and
    "content" as memoryview), one such dict, and what `google.colab.files.upload()` gives (name → bytes).

    Raises:
        DataError: two files of one name.
    """
    if hasattr(value, "traits") and hasattr(value, "value"):
        value = value.value
    if isinstance(value, Mapping):
        if _is_content(value.get("content")) and isinstance(value.get("name"), str):
            return {value["name"]: bytes(value["content"])}
        found = {name: _content(item) for name, item in value.items() if isinstance(name, str)}
        return {k: v for k, v in found.items() if v is not None} if None not in found.values() else None
    if isinstance(value, (tuple, list)) and value and all(_is_upload(item) for item in value):
        names = [item["name"] for item in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"Two uploaded files are called {twice!r}; rename one of them.")
        return {item["name"]: bytes(item["content"]) for item in value}
    return {} if isinstance(value, tuple) and not value else None


def check_size(uploads: Mapping[str, bytes]) -> None:
    """Refuse what a widget cannot carry safely.

    Raises:
        DataError: more than `MAX_WIDGET_BYTES` together; the message says how larger files come in.
    """
    size = sum(map(len, uploads.values()))
    if size > MAX_WIDGET_BYTES:
        raise DataError(
            f"The upload holds {size:,} bytes. Through a widget at most {MAX_WIDGET_BYTES:,} arrive safely: put the file on "
            "Google Drive (or into the runtime's folder) and give its path, or use DatasetUploader.upload_from_local() in Colab."
        )


class DatasetUploader:
    """Lets a person choose files on their own machine.

    Example:
        >>> uploader = DatasetUploader.upload_from_local()    # Colab: asks at once; elsewhere: shows a button
        >>> data = uploader.load()                            # in the next cell

    Attributes:
        uploads: name → content, as far as files have arrived.
    """

    def __init__(self, widget: Any = None, uploads: Mapping[str, bytes] | None = None) -> None:
        self.widget = widget
        self._uploads = dict(uploads or {})

    @classmethod
    def upload_from_local(cls, multiple: bool = True) -> DatasetUploader:
        """Ask for files.

        In Colab its own dialog opens and this call waits for it. Elsewhere a FileUpload widget is returned inside the
        uploader, which shows itself; the files are there once the person has chosen them.

        Args:
            multiple: whether several files may be chosen (widget only; Colab's dialog always allows it).

        Raises:
            DataError: Colab's dialog was closed without a file.
            MissingPackageError: neither Colab nor ipywidgets is there.
        """
        colab = _colab_files()
        if colab is not None:
            uploads = uploads_in(colab.upload()) or {}
            if not uploads:
                raise DataError("Nothing was uploaded: the dialog was closed. Run the cell again and choose a file.")
            for name in uploads:
                if _RENAMED.match(name):
                    logger.warning("the upload was renamed to %r, as a file of its own name was there already", name)
            return cls(uploads=uploads)
        widgets = require("ipywidgets", extra="ui", feature="Uploading from a notebook")
        return cls(widgets.FileUpload(accept=",".join(KINDS), multiple=multiple, description="Choose files"))

    @property
    def uploads(self) -> dict[str, bytes]:
        """Name → content.

        Raises:
            DataError: more than a widget can carry.
        """
        if self.widget is None:
            return self._uploads
        uploads = uploads_in(self.widget) or {}
        check_size(uploads)
        return uploads

    def load(self, **options: Any) -> LoadedDataset:
        """Read what was uploaded; see `DatasetLoader.from_anything` for the options.

        Raises:
            DataError: nothing has arrived yet, or it cannot be read.
        """
        from utils.training.dataset_utilities import DatasetLoader

        uploads = self.uploads
        if not uploads:
            raise DataError("No file has arrived yet. Choose one with the button above, then run this cell again.")
        return DatasetLoader.from_anything(uploads, **options)

    def __repr__(self) -> str:
        names = ", ".join(f"{name} ({len(content):,} bytes)" for name, content in self.uploads.items())
        return f"<DatasetUploader: {names or 'no file yet'}>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if self.widget is not None:
            display(self.widget)
        else:
            display({"text/plain": repr(self)}, raw=True)


def _colab_files() -> Any:
    """`google.colab.files` inside Colab's kernel; None elsewhere, where the package cannot be imported."""
    try:
        from google.colab import files
    except ImportError:
        return None
    return files


def _is_content(value: Any) -> bool:
    return isinstance(value, (bytes, bytearray, memoryview))


def _is_upload(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("name"), str) and _is_content(item.get("content"))


def _content(item: Any) -> bytes | None:
    if _is_content(item):
        return bytes(item)
    inner = item.get("content") if isinstance(item, Mapping) else None
    return None if inner is None or not _is_content(inner) else bytes(inner)
