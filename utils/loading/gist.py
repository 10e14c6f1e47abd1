"""Fetches a gist through the GitHub API: pinned, hashed, checked, and stored at once or not at all.

Reads .py and .json files; what else a gist holds is listed and never fetched or written. Which of the files is the model
is for `model_loader`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utils.errors import ConfigError, GistContentError, GistIdError, GistNotFoundError, GistUnreachableError
from utils.loading.cache import cache_root, remove_folder, write_folder
from utils.loading.file_names import check_names
from utils.loading.gist_reference import GistReference, looks_like_gist, parse_gist_reference
from utils.loading.http import Client, Limits, is_loopback
from utils.loading.strict_json import parse_json
from utils.loading.text import decode_text

__all__ = [
    "Gist",
    "GistReference",
    "download_gist",
    "fetch_gist",
    "gist_folder",
    "looks_like_gist",
    "parse_gist_reference",
    "store_gist",
]

MAX_FILE_BYTES = 5_000_000
MAX_TOTAL_BYTES = 20_000_000
MAX_FILES = 100
_MAX_ANSWER_BYTES = 3 * MAX_TOTAL_BYTES  # JSON writes some characters as six
_READ_SUFFIXES = (".py", ".json")
_HEX = frozenset("0123456789abcdef")
_FORMAT = 1


@dataclass(frozen=True)
class Gist:
    """A fetched gist.

    Attributes:
        gist_id: its id.
        revision: the revision that was fetched, 40 hex digits.
        files: name → text of the files that are read (.py, .json).
        sha256: name → SHA-256 of the file's bytes.
        ignored: names of the files that are never read.
        name_hint: the model's name, where the link said one.
    """

    gist_id: str
    revision: str
    files: dict[str, str]
    sha256: dict[str, str]
    ignored: tuple[str, ...] = ()
    name_hint: str | None = None
    contents: dict[str, bytes] = field(default_factory=dict, repr=False)


def gist_folder(gist_id: str, revision: str, cache_dir: str | Path | None = None) -> Path:
    """Where one revision of a gist is kept."""
    base = cache_root() / "gists" if cache_dir is None else Path(cache_dir).expanduser()
    return base / f"{gist_id}-{revision}"


def fetch_gist(
    source: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
    limits: Limits | None = None,
) -> Gist:
    """Download a gist and store it in the cache. Arguments and errors: `download_gist`."""
    gist = download_gist(source, revision=revision, cache_dir=cache_dir, sleep=sleep, limits=limits)
    store_gist(gist, cache_dir)
    return gist


def download_gist(
    source: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
    limits: Limits | None = None,
) -> Gist:
    """Fetch a gist into memory, checked; a pinned revision that the cache holds is taken from there.

    The environment variable GITHUB_API_URL moves the API (default https://api.github.com); GITHUB_TOKEN, where set, is
    sent to the API's host alone.

    Args:
        source: gist id or any URL of a gist.
        revision: 40 hex digits; wins over one in the URL.
        cache_dir: where fetched gists are kept; by default below the user's cache folder.
        sleep: waits between tries (seconds).
        limits: tries and times.

    Raises:
        GistIdError: `source` or `revision` is none.
        GistNotFoundError, GistRateLimitError, GistUnreachableError: see `utils.loading.http`.
        GistContentError: names, sizes, counts, encodings or hosts that are refused.
    """
    reference = parse_gist_reference(source)
    pinned = _checked_revision(revision) if revision is not None else reference.revision
    if pinned is not None and (stored := _read_stored(reference, pinned, cache_dir)) is not None:
        return stored
    client = _client(sleep, limits)
    if pinned is None and reference.raw_hash is not None:
        return _download_raw_reference(client, reference, reference.raw_hash)
    return _download(client, reference, pinned)


def _checked_revision(revision: str) -> str:
    revision = revision.strip().lower()
    if len(revision) not in (40, 64) or not set(revision) <= _HEX:
        raise GistIdError(
            f"revision={revision[:80]!a} must be the full revision: 40 hex digits, as the gist's URL shows."
        )
    return revision


def _client(sleep: Callable[[float], None], limits: Limits | None) -> Client:
    base = os.environ.get("GITHUB_API_URL", "").strip().rstrip("/") or "https://api.github.com"
    parts = urlsplit(base)
    if (
        not parts.hostname
        or parts.username
        or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(base)))
    ):
        raise ConfigError(
            "GITHUB_API_URL must be an https address such as https://api.github.com (http only for loopback)."
        )
    return Client(base, os.environ.get("GITHUB_TOKEN") or None, limits or Limits(), sleep)


def _download(client: Client, reference: GistReference, pinned: str | None) -> Gist:
    answer = _ask(client, reference.gist_id, pinned)
    revision = _revision_of(answer, pinned)
    entries = _entries(answer)
    contents: dict[str, bytes] = {}
    for name, entry in entries.items():
        if name.lower().endswith(_READ_SUFFIXES):
            contents[name] = _content(client, name, entry)
    return _assemble(reference, revision, contents, tuple(name for name in entries if name not in contents))


def _download_raw_reference(client: Client, reference: GistReference, raw_hash: str) -> Gist:
    """A raw URL pins one file by its content or the gist by its revision: the newest revision first, if it has the file."""
    newest = _download(client, reference, None)
    if newest.revision == raw_hash or any(_blob_hash(content) == raw_hash for content in newest.contents.values()):
        return newest
    try:
        return _download(client, reference, raw_hash)
    except GistNotFoundError as error:
        raise GistNotFoundError(
            f"The raw URL of gist {reference.gist_id} names an older state of a file, and not the revision that it belongs "
            f"to. Open the gist's history, copy that revision, and pass revision=..., or drop {raw_hash[:12]}… from the URL "
            "for the newest one."
        ) from error


def _blob_hash(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _ask(client: Client, gist_id: str, revision: str | None) -> dict[str, Any]:
    url = f"{client.api_url}/gists/{gist_id}" + (f"/{revision}" if revision else "")
    headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    body = client.get(url, _MAX_ANSWER_BYTES, headers)
    try:
        answer = parse_json(body.decode("utf-8"), "the answer", max_bytes=_MAX_ANSWER_BYTES)
    except (UnicodeDecodeError, ConfigError) as error:
        raise GistUnreachableError(f"{urlsplit(url).netloc} did not answer as the GitHub API does: {error}") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("files"), dict):
        raise GistUnreachableError(f"{urlsplit(url).netloc} did not answer as the GitHub API does: no list of files.")
    if str(answer.get("id", gist_id)).lower() != gist_id:
        raise GistContentError(f"Gist {gist_id} was asked for, and {ascii(str(answer['id']))[:80]} came.")
    return answer


def _revision_of(answer: Mapping[str, Any], pinned: str | None) -> str:
    history = answer.get("history")
    versions = [
        str(entry.get("version", "")).lower()
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict)
    ]
    if pinned is not None:
        if versions and pinned not in versions:
            raise GistContentError(f"Revision {pinned} was asked for, but the answer is of {ascii(versions[0])[:80]}.")
        return pinned
    if not versions or len(versions[0]) not in (40, 64) or not set(versions[0]) <= _HEX:
        raise GistContentError("The answer names no revision, so that what was fetched could not be pinned.")
    return versions[0]


def _entries(answer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """File entries of the answer, after every check that needs no content."""
    files = answer["files"]
    if answer.get("truncated"):
        raise GistContentError(
            f"GitHub cut the list of files short (it shows {len(files)}); such a gist cannot be read in full."
        )
    if len(files) > MAX_FILES:
        raise GistContentError(f"The gist holds {len(files):,} files; at most {MAX_FILES} are read.")
    check_names(files)
    total = 0
    for name, entry in files.items():
        if not isinstance(entry, dict) or entry.get("filename", name) != name:
            raise GistContentError(f"The entry of the file {name!a} contradicts itself.")
        total += _size(name, entry)
    if total > MAX_TOTAL_BYTES:
        raise GistContentError(f"The gist holds {total:,} bytes; at most {MAX_TOTAL_BYTES:,} are read.")
    return files


def _size(name: str, entry: Mapping[str, Any]) -> int:
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise GistContentError(f"The gist does not say how large {name!a} is.")
    if size > MAX_FILE_BYTES:
        raise GistContentError(f"{name!a} holds {size:,} bytes; at most {MAX_FILE_BYTES:,} are read per file.")
    return size


def _content(client: Client, name: str, entry: Mapping[str, Any]) -> bytes:
    """The bytes of a file: from the answer where it holds them all, else from the raw address."""
    size, text = _size(name, entry), entry.get("content")
    if not entry.get("truncated") and isinstance(text, str):
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GistContentError(f"{name!a} is no valid Unicode (position {error.start}).") from error
        if len(content) == size:
            return content
        if len(content) > MAX_FILE_BYTES:
            raise GistContentError(
                f"{name!a} holds {len(content):,} bytes; at most {MAX_FILE_BYTES:,} are read per file."
            )
    raw_url = entry.get("raw_url")
    if not isinstance(raw_url, str):
        raise GistContentError(f"{name!a} should hold {size:,} bytes, but the answer holds others and no raw address.")
    content = client.get(raw_url, MAX_FILE_BYTES)
    if len(content) != size:
        raise GistContentError(f"{name!a} should hold {size:,} bytes, but holds {len(content):,}.")
    return content


def _assemble(reference: GistReference, revision: str, contents: dict[str, bytes], ignored: tuple[str, ...]) -> Gist:
    files = {name: decode_text(content, name, GistContentError) for name, content in contents.items()}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return Gist(reference.gist_id, revision, files, sha256, ignored, reference.name, contents)


def store_gist(gist: Gist, cache_dir: str | Path | None = None) -> Path:
    """Keep a gist in the cache; its folder appears complete or not at all.

    Returns:
        The folder: `files/` and manifest.json (hashes, revision).
    """
    folder = gist_folder(gist.gist_id, gist.revision, cache_dir)
    if folder.is_dir():
        stored = _read_stored(GistReference(gist.gist_id), gist.revision, cache_dir)
        if stored is not None and stored.sha256 == gist.sha256:
            return folder
        remove_folder(folder)
    manifest = {
        "format": _FORMAT,
        "gist_id": gist.gist_id,
        "revision": gist.revision,
        "sha256": gist.sha256,
        "ignored": list(gist.ignored),
    }
    files = {f"files/{name}": content for name, content in gist.contents.items()}
    files["manifest.json"] = json.dumps(manifest, indent=2, sort_keys=True).encode("utf-8")
    write_folder(folder, files)
    return folder


def _read_stored(reference: GistReference, revision: str, cache_dir: str | Path | None) -> Gist | None:
    """A revision from the cache, if every hash still holds; None where it must be fetched."""
    folder = gist_folder(reference.gist_id, revision, cache_dir)
    try:
        manifest = parse_json((folder / "manifest.json").read_text(encoding="utf-8"), "manifest.json")
        if manifest.get("format") != _FORMAT or manifest.get("revision") != revision:
            return None
        check_names(manifest["sha256"])
        contents = {name: (folder / "files" / name).read_bytes() for name in manifest["sha256"]}
    except (OSError, ConfigError, GistContentError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        return None  # absent or damaged: the network has the truth
    gist = _assemble(reference, revision, contents, tuple(manifest.get("ignored", ())))
    return gist if gist.sha256 == manifest["sha256"] else None
