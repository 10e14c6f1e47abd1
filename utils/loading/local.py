"""Reads a model's files from a folder or a single file on this machine. Chooses no class and runs nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import ModelLoadError
from utils.loading.text import decode_text

MAX_FILE_BYTES = 5_000_000
MAX_FILES = 300


@dataclass
class LocalFolder:
    """Text of the files below one folder, read when asked for, each with the SHA-256 of its bytes."""

    root: Path
    sha256: dict[str, str] = field(default_factory=dict)

    def read(self, name: str) -> str | None:
        """Text of a relative path, or None where there is no such file.

        Raises:
            ModelLoadError: the file is too large, no text, or cannot be read.
        """
        path = self.root / name
        try:
            if not path.is_file():
                return None
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise ModelLoadError(f"{path} holds {size:,} bytes; at most {MAX_FILE_BYTES:,} are read.")
            data = path.read_bytes()
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error}") from error
        text = decode_text(data, str(path), ModelLoadError)
        self.sha256[name] = hashlib.sha256(data).hexdigest()
        return text

    def python_files(self) -> dict[str, str]:
        """The Python files that lie directly in the folder: name → text."""
        names = sorted(path.name for path in self.root.glob("*.py"))
        if len(names) > MAX_FILES:
            raise ModelLoadError(
                f"{self.root} holds {len(names)} Python files; name one of them (at most {MAX_FILES} are read)."
            )
        texts = {name: self.read(name) for name in names}
        return {name: text for name, text in texts.items() if text is not None}
