"""Parent package of models that came as source text; this folder itself holds none of them.

Importing it installs a finder for `utils.loading.generated.m_<hash>…`, so that a child process can import (and unpickle)
what its parent loaded. The finder reads from the cache, and only folders whose content still has the hash in their name.
`utils.loading.sources` writes them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from utils.loading.cache import cache_root


def folder_of(package: str) -> Path:
    """Where the files of `m_<hash>` lie."""
    return cache_root() / "generated" / package


def digest(files: Mapping[str, bytes]) -> str:
    """16 hex digits of a SHA-256 over every path and every byte."""
    total = hashlib.sha256()
    for path, content in sorted(files.items()):
        total.update(f"{len(path.encode())}:{path}:{len(content)}:".encode())
        total.update(content)
    return total.hexdigest()[:16]


def is_intact(package: str) -> bool:
    """Whether the folder holds exactly the files that its name was made of."""
    folder = folder_of(package)
    if folder.is_symlink() or not folder.is_dir():
        return False
    paths = list(folder.rglob("*"))
    if any(path.is_symlink() for path in paths):
        return False
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}
    return package == f"m_{digest(files)}"


class _Loader(SourceFileLoader):
    """Compiles the source each time: a planted or stale .pyc is never read, and the folder never changes."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(
            self.get_data(path).decode("utf-8"), path
        )  # as it was reviewed, whatever it declares


class _Finder(MetaPathFinder):
    """Finds `utils.loading.generated.m_<hash>` and what lies below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        prefix = __name__ + ".m_"
        if not fullname.startswith(prefix):
            return None
        package, *inner = fullname[len(__name__) + 1 :].split(".")
        if not inner and not is_intact(package):
            return None
        base = folder_of(package).joinpath(*inner)
        if (base / "__init__.py").is_file():
            return _spec(fullname, base / "__init__.py", [str(base)])
        file = base.with_name(base.name + ".py")
        return _spec(fullname, file, None) if inner and file.is_file() else None


def _spec(fullname: str, file: Path, locations: list[str] | None) -> ModuleSpec | None:
    loader = _Loader(fullname, str(file))
    return importlib.util.spec_from_file_location(
        fullname, file, loader=loader, submodule_search_locations=locations
    )  # fmt: skip


def _install() -> None:
    """Put the finder first, once, also after this module was reloaded."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    sys.meta_path.insert(0, _Finder())


_install()
