"""Finds the gist that a pasted text means: an id or any URL. Fetches nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from utils.errors import GistIdError

_ID = re.compile(r"[0-9a-f]{5,64}|[0-9]{1,20}", re.IGNORECASE)
_LIKELY_ID = re.compile(r"[0-9a-f]{20}|[0-9a-f]{32}", re.IGNORECASE)
_REVISION = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.IGNORECASE)
_SHORTENED = re.compile(
    r"(?:gist\.github\.com|gist\.githubusercontent\.com|api\.github\.com|colab\.research\.google\.com)/"
)
_MAX_TEXT = 2_048
_ACCEPTED = (
    "an id (20 or 32 hex digits) or a URL such as https://gist.github.com/<user>/<id>, "
    "https://api.github.com/gists/<id>, a raw URL, or a Colab link with #gist_id=<id>"
)


@dataclass(frozen=True)
class GistReference:
    """A gist, and what the link said about it.

    Attributes:
        gist_id: its id, in lower case.
        revision: 40 hex digits that pin it, where the link held them.
        raw_hash: the hash in a raw URL: that of one file's content or of a revision; GitHub uses both.
        name: the model's name, where the link said `name=`.
    """

    gist_id: str
    revision: str | None = None
    raw_hash: str | None = None
    name: str | None = None


def looks_like_gist(text: str) -> bool:
    """Whether `text` is meant as a gist (perhaps badly spelled) rather than as a path of this machine."""
    text = text.strip()
    if "://" in text or _SHORTENED.match(text) or text.startswith("git@gist."):
        return True
    return not re.search(r"[/\\]|\.\w+$|^[.~]", text)


def parse_gist_reference(text: str) -> GistReference:
    """Find the gist that `text` means.

    Raises:
        GistIdError: it is neither a gist id nor a URL that holds one.

    Example:
        >>> parse_gist_reference("https://gist.github.com/someone/0123456789abcdef0123").gist_id
        '0123456789abcdef0123'
    """
    text = text.strip().strip("<>\"'`").strip()
    if not text or len(text) > _MAX_TEXT or not text.isprintable():
        raise _refusal(text)
    if _ID.fullmatch(text):
        return GistReference(text.lower())
    if text.startswith("git@gist.github.com:"):
        text = "https://gist.github.com/" + text.partition(":")[2]
    if _SHORTENED.match(text):
        text = "https://" + text
    try:
        url = urlsplit(text)
        reference = _from_url(url) if url.scheme in ("http", "https") and url.hostname else None
    except ValueError:  # a malformed address, e.g. "https://[::1"
        reference = None
    if reference is None:
        raise _refusal(text)
    return reference


def _refusal(text: str) -> GistIdError:
    return GistIdError(f"{text[:120]!a} is neither a gist id nor a gist URL. Expected {_ACCEPTED}.")


def _from_url(url: SplitResult) -> GistReference | None:
    settings = {**parse_qs(url.query), **parse_qs(url.fragment.lstrip("?/"))}
    name = settings.get("name", [None])[0]
    named = settings.get("gist_id", settings.get("gist", [""]))[0].strip()
    if named:
        if not _ID.fullmatch(named):
            return parse_gist_reference(named) if "://" in named else None
        revision = settings.get("revision", [""])[0]
        return GistReference(named.lower(), revision.lower() if _REVISION.fullmatch(revision) else None, name=name)
    parts = [unquote(part) for part in url.path.split("/") if part]
    readers = {
        "gist.github.com": _from_page,
        "www.gist.github.com": _from_page,
        "gist.githubusercontent.com": _from_raw,
        "colab.research.google.com": _from_colab,
        "api.github.com": _from_api,
        urlsplit(os.environ.get("GITHUB_API_URL", "")).hostname: _from_api,
    }
    reader = readers.get(url.hostname)
    return reader(parts) if reader else None


def _from_page(parts: list[str]) -> GistReference | None:
    """Read gist.github.com/[<user>/]<id>[/<revision>][/raw/…]."""
    if len(parts) > 1 and not (
        _LIKELY_ID.fullmatch(parts[0]) and (_REVISION.fullmatch(parts[1]) or not _is_id(parts[1]))
    ):
        parts = parts[1:]
    if not parts or not _is_id(parts[0].removesuffix(".git")):
        return None
    if parts[1:2] == ["raw"]:
        return _from_raw(["user", *parts])
    revision = parts[1].lower() if len(parts) > 1 and _REVISION.fullmatch(parts[1]) else None
    return GistReference(parts[0].removesuffix(".git").lower(), revision)


def _from_raw(parts: list[str]) -> GistReference | None:
    """Read gist.githubusercontent.com/<user>/<id>/raw[/<hash>]/<file>."""
    if len(parts) < 3 or parts[2] != "raw" or not _is_id(parts[1]):
        return None
    raw_hash = parts[3].lower() if len(parts) > 3 and _REVISION.fullmatch(parts[3]) else None
    return GistReference(parts[1].lower(), raw_hash=raw_hash)


def _from_colab(parts: list[str]) -> GistReference | None:
    """Read colab.research.google.com/gist/<user>/<id>/<notebook>.ipynb."""
    if "gist" not in parts:
        return None
    rest = parts[parts.index("gist") + 1 :]
    found = next((part for part in rest[1:2] + rest[:1] if _is_id(part)), None)
    return GistReference(found.lower()) if found else None


def _from_api(parts: list[str]) -> GistReference | None:
    """Read …/gists/<id>[/<revision>]."""
    if "gists" not in parts:
        return None
    rest = parts[parts.index("gists") + 1 :]
    if not rest or not _is_id(rest[0]):
        return None
    revision = rest[1].lower() if len(rest) > 1 and _REVISION.fullmatch(rest[1]) else None
    return GistReference(rest[0].lower(), revision)


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None
