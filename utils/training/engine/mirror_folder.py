"""What lies on a mirror: immutable objects under unique names, and commit files that say what they are.

Google Drive loses renames, doubles rewritten files and answers reads that never happened, so nothing there is renamed,
overwritten or appended: every write makes a new name, is read back, and counts only once a commit file names it together
with its SHA-256. Knows files and hashes; leaves threads and retries to `engine.mirror`, runs to `run_folder`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from utils._files import whole_file
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of a commit file."""

DRIVE_MOUNT = Path("/content/drive")
"""Where Colab mounts Google Drive."""

CHUNK = 4 << 20
"""Bytes that are read and written at once."""

MARGIN = 16 << 20
"""Bytes that stay free on the mirror beside what is written."""

_OBJECT = re.compile(r"object-[0-9a-f]{16}-[0-9a-f]{12}\.bin")
_COMMIT = re.compile(r"commit-\d{6,}-\d{6}-[0-9a-f]{8}\.json")
_RUN = re.compile(r".+-[0-9a-f]{12}")


class ReadBackError(OSError):
    """What was read is not what was written."""


class FileSystem:
    """What a mirror asks of files; tests hand over one that fails.

    Attributes:
        drive_mount: folder that must be a mount before anything below it is written or read.
    """

    drive_mount = DRIVE_MOUNT

    def is_mount(self, folder: Path) -> bool:
        """Whether a file system is mounted there."""
        return folder.is_mount()

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it."""
        folder.mkdir(parents=True, exist_ok=True)

    def names(self, folder: Path) -> list[str]:
        """Names in a folder."""
        return sorted(os.listdir(folder))

    def free(self, folder: Path) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(folder).free

    def write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Write a file that does not exist yet, down to the device."""
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def read(self, path: Path) -> Iterator[bytes]:
        """The bytes of a file; from the device and not from the page cache, where the system can be told so."""
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(CHUNK):
                yield chunk

    def remove(self, path: Path) -> None:
        """Delete a file; emptied first, so that a trash that keeps it keeps nothing."""
        os.truncate(path, 0)
        path.unlink()


@dataclass(frozen=True)
class MirroredFile:
    """One file of a run on the mirror: its place in the run folder, the object that holds it, hash and bytes."""

    name: str
    object: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Commit:
    """A state of a run that is completely on the mirror.

    Attributes:
        run_id, run_name: the run; step: optimizer steps done in its newest generation; sequence: number of that generation.
        number: number of the commit among those of one generation.
        finished: whether the run had come to its end.
        files: everything that belongs to it.
        file: name of the commit file.
    """

    run_id: str
    run_name: str
    step: int
    sequence: int
    number: int
    finished: bool
    files: tuple[MirroredFile, ...]
    file: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def order(self) -> tuple[int, int, str]:
        """Newer commits have a higher one."""
        return self.sequence, self.number, self.file

    def entry(self, name: str) -> MirroredFile | None:
        """A file of the run, by its place in the run folder."""
        return next((item for item in self.files if item.name == name), None)

    def to_text(self) -> str:
        """JSON that carries its own hash."""
        body = {key: value for key, value in dataclasses.asdict(self).items() if key != "file"}
        return json.dumps({"sha256": _hash_of(body), "commit": body}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_text(cls, text: str, file: str) -> Commit:
        """A commit from its JSON.

        Raises:
            ValueError: it is torn, damaged, of a newer format, or names files outside a run folder.
        """
        try:
            outer = json.loads(text)
            body = outer["commit"]
            if outer["sha256"] != _hash_of(body):
                raise ValueError("its hash differs from its content")
            if body["format_version"] > FORMAT_VERSION:
                raise ValueError(f"it has format version {body['format_version']}, this package reads {FORMAT_VERSION}")
            files = tuple(MirroredFile(**item) for item in body["files"])
            found = cls(**{**body, "files": files}, file=file)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no commit ({error})") from error
        for item in files:
            if not _OBJECT.fullmatch(item.object) or not is_inside(item.name):
                raise ValueError(f"it names {item.name!r} in {item.object!r}")
        return found


class MirrorFolder:
    """The copy of one run on a mirror.

    Args:
        path: `<mirror>/<run name>-<12 hex digits>`; see `folder_of`.
        files: the file system.
    """

    def __init__(self, path: Path, files: FileSystem) -> None:
        self.path, self.files = path, files
        self._made = False
        self._verified: dict[str, MirroredFile] = {}  # by SHA-256: read back by this process
        self._written: dict[str, MirroredFile] = {}  # the same from before an error: to be read back once more
        self._commits: list[Commit] | None = None

    # ---- writing ----------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Make the folder, once and never again: where a mount has gone, it would be made on the disk below.

        Raises:
            ConfigError: Google Drive is not mounted.
            OSError: the folder went away, or cannot be read.
        """
        require_mounted(self.path, self.files)
        if not self._made:
            self.files.make_folder(self.path)
            self._made = True
        if self._commits is None:
            self._commits = self.read_commits()
        else:
            self.files.names(self.path)  # raises where it has gone

    def forget(self) -> None:
        """Believe nothing that was seen before: what is there is read anew."""
        self._written.update(self._verified)
        self._verified, self._commits = {}, None

    def has(self, sha256: str) -> bool:
        """Whether some commit names a file of that hash."""
        return sha256 in self._verified or any(
            item.sha256 == sha256 for commit in self._commits or () for item in commit.files
        )

    def known(self, sha256: str, name: str) -> MirroredFile | None:
        """The entry of a file that is there already, where its bytes were read back now or earlier in this process."""
        found = self._verified.get(sha256)
        if found is None:
            candidates = [item for commit in self._commits or () for item in commit.files if item.sha256 == sha256]
            candidates += [self._written[sha256]] if sha256 in self._written else []
            for candidate in candidates[-1:]:
                with contextlib.suppress(OSError):  # an object that cannot be read is written anew
                    if self._reads_as(candidate):
                        self._verified[sha256] = found = candidate
        return None if found is None else dataclasses.replace(found, name=name)

    def put(self, name: str, chunks: Iterable[bytes]) -> MirroredFile:
        """Write a file under a new name, read it back, and compare.

        Raises:
            ReadBackError: what came back differs.
            OSError: whatever the mirror raised; nothing counts as written then.
        """
        digest, size = hashlib.sha256(), 0
        path = self.path / f"object-{uuid.uuid4().hex[:16]}-{uuid.uuid4().hex[:12]}.bin"

        def hashed() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        try:
            self.files.write(path, hashed())
            entry = MirroredFile(name, path.name, digest.hexdigest(), size)
            if not self._reads_as(entry):
                raise ReadBackError(errno.EIO, "what was read back differs from what was written", str(path))
        except BaseException:
            with contextlib.suppress(OSError):  # what stays is no part of a commit, and `collect` removes it
                self.files.remove(path)
            raise
        self._verified[entry.sha256] = entry
        return entry

    def commit(self, commit: Commit) -> Commit:
        """Write the commit file, last; where the newest commit says the same, that one stands."""
        commits = self._commits or []
        newest = max(commits, key=lambda item: item.order, default=None)
        if newest is not None and dataclasses.replace(newest, file="", number=0) == dataclasses.replace(
            commit, file="", number=0
        ):
            return newest
        number = 1 + max((item.number for item in commits if item.sequence == commit.sequence), default=0)
        name = f"commit-{commit.sequence:06d}-{number:06d}-{uuid.uuid4().hex[:8]}.json"
        commit = dataclasses.replace(commit, number=number, file=name)
        text = commit.to_text().encode("utf-8")
        path = self.path / name
        try:
            self.files.write(path, [text])
            if b"".join(self.files.read(path)) != text:
                raise ReadBackError(errno.EIO, "a commit file reads back differently", str(path))
        except BaseException:
            with contextlib.suppress(OSError):  # torn, it is read as no commit
                self.files.remove(path)
            raise
        self._commits = [*commits, commit]
        return commit

    def collect(self, keep: int) -> None:
        """Delete commits beyond the newest `keep`, then objects that no commit names; only files that this class made."""
        ordered = sorted(self._commits or (), key=lambda item: item.order, reverse=True)
        kept = ordered[:keep]
        self._commits = kept
        commits = {item.file for item in kept}
        objects = {item.object for commit in kept for item in commit.files}
        self._verified = {sha: item for sha, item in self._verified.items() if item.object in objects}
        self._written = {}
        names = self.files.names(self.path)
        unwanted = [name for name in names if _COMMIT.fullmatch(name) and name not in commits]
        unwanted += [name for name in names if _OBJECT.fullmatch(name) and name not in objects]
        errors = []
        for name in unwanted:  # commits first: none may name what is gone
            try:
                self.files.remove(self.path / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # ---- reading ----------------------------------------------------------------------------------------------------
    def read_commits(self) -> list[Commit]:
        """All whole commits, newest first; others are named in the log."""
        found = []
        for name in self.files.names(self.path):
            if not _COMMIT.fullmatch(name):
                continue
            try:
                raw = b"".join(self.files.read(self.path / name))
                found.append(Commit.from_text(raw.decode("utf-8"), name))
            except ValueError as error:
                logger.warning("the mirror's %s is not used: %s", name, error)
        return sorted(found, key=lambda item: item.order, reverse=True)

    def read_text(self, entry: MirroredFile) -> str:
        """A small file as text, where its bytes verify.

        Raises:
            ReadBackError: they do not.
        """
        raw = b"".join(self.files.read(self.path / entry.object))
        if hashlib.sha256(raw).hexdigest() != entry.sha256:
            raise ReadBackError(errno.EIO, f"{entry.name} is damaged on the mirror", str(self.path / entry.object))
        return raw.decode("utf-8")

    def fetch(self, entry: MirroredFile, target: Path) -> None:
        """Copy a file from the mirror; it appears only where its bytes verify.

        Raises:
            ReadBackError: they do not.
        """
        digest = hashlib.sha256()
        with whole_file(target) as file:
            for chunk in self.files.read(self.path / entry.object):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != entry.sha256:
                raise ReadBackError(errno.EIO, f"{entry.name} is damaged on the mirror", str(self.path / entry.object))

    def _reads_as(self, entry: MirroredFile) -> bool:
        digest, size = hashlib.sha256(), 0
        for chunk in self.files.read(self.path / entry.object):
            digest.update(chunk)
            size += len(chunk)
        return (digest.hexdigest(), size) == (entry.sha256, entry.size)


def folder_of(mirror: Path, run_name: str, run_id: str) -> Path:
    """Where a run lies on a mirror: two runs of one name never share a folder."""
    return mirror / f"{run_name}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"


def folders_on(mirror: Path, files: FileSystem) -> list[MirrorFolder]:
    """The runs on a mirror; none where it does not exist yet.

    Raises:
        ConfigError: it lies on a Google Drive that is not mounted.
        OSError: the mirror cannot be read.
    """
    require_mounted(mirror, files)
    try:
        names = files.names(mirror)
    except FileNotFoundError:
        return []
    return [MirrorFolder(mirror / name, files) for name in names if _RUN.fullmatch(name)]


def require_mounted(folder: Path, files: FileSystem) -> None:
    """Refuse a folder on Google Drive while Drive is not mounted: it would be a local folder that looks safe.

    Raises:
        ConfigError: it is not mounted.
    """
    mount = files.drive_mount
    if (folder == mount or mount in folder.parents) and not files.is_mount(mount):
        raise ConfigError(
            f"{folder} lies on Google Drive, which is not mounted. Run `from google.colab import drive; drive.mount({str(mount)!r})` "
            "in a cell of its own first, or leave mirror_dir at None."
        )


def mirror_path(folder: str | Path) -> Path:
    """A mirror's folder as an absolute path, without following links."""
    return Path(os.path.abspath(Path(folder).expanduser()))


def is_inside(name: str) -> bool:
    """Whether a relative name stays inside its folder in every spelling."""
    parts = PurePosixPath(name).parts
    plain = not any(character in name for character in "\\:\0")
    return bool(parts) and plain and not name.startswith("/") and not {"..", "."} & set(name.split("/"))


def watched(chunks: Iterable[bytes], tell: Callable[[int], None]) -> Iterator[bytes]:
    """The same chunks, telling their sizes; `tell` may raise to end the copy."""
    for chunk in chunks:
        tell(len(chunk))
        yield chunk


def _hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("utf-8")).hexdigest()
