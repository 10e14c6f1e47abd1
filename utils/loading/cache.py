"""Where loading keeps files, and how a folder appears there at once or not at all. Knows nothing of gists or models."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from utils._files import sync_folder
from utils.errors import ConfigError

CACHE_VARIABLE = "TRANSFORMER_BUILDER_CACHE"
"""Environment variable that moves the cache; child processes inherit it and so find the same modules."""


def cache_root() -> Path:
    """The folder below which everything is kept: `$TRANSFORMER_BUILDER_CACHE`, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).absolute() / "transformer-builder"


def private_folder(path: Path) -> Path:
    """Create `path` for this user alone (mode 0700) and return it.

    Raises:
        ConfigError: the folder cannot be created, or belongs to somebody else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            raise ConfigError(f"The cache folder {path} belongs to another user; set {CACHE_VARIABLE} to one of yours.")
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"The cache folder {path} cannot be used ({error}); set the environment variable {CACHE_VARIABLE} "
            "to a folder that you can write to."
        ) from error
    return path


def write_folder(target: Path, files: Mapping[str, bytes]) -> bool:
    """Write `files` (relative POSIX path → content) as the folder `target`, visible only once complete.

    Returns:
        True if this call created `target`, False if another process was faster (its folder is left as it is).

    Raises:
        ConfigError: the folder that is to hold `target` cannot be written.
        OSError: writing failed; nothing is left behind.
    """
    parent = private_folder(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
    try:
        for name, content in files.items():
            write_file(temporary / name, content)
        try:
            temporary.rename(target)
        except OSError:
            if target.is_dir():
                return False
            raise
        sync_folder(parent)
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already where the rename succeeded


def remove_folder(folder: Path) -> None:
    """Take a folder out of sight at once, then delete it."""
    aside = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
    folder.rename(aside / folder.name)
    shutil.rmtree(aside)


def write_file(path: Path, content: bytes) -> None:
    """Write and fsync one new file, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
