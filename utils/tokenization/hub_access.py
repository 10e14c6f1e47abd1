"""The few files of a tokenizer from the Hugging Face Hub, or the reason why not, within seconds.

Reads the Hub's own cache first. Downloads without retries and under two deadlines, one for the first answer and one for
all of it; the work runs in a thread of its own, since looking up a name cannot be interrupted. Understands no tokenizer.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit

from utils.errors import HubError
from utils.loading.http import is_loopback

logger = logging.getLogger(__name__)

CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
"""Small files that may be missing; the first is asked for first, so that a refusal is known before anything large moves."""

VOCABULARY_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("spm.model",),
)
"""Ways in which repositories hold a vocabulary, in the order in which they are looked for."""

_ENDPOINT = "https://huggingface.co"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TRUE = {"1", "ON", "YES", "TRUE"}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class HubLimits:
    """How long the Hub may take, and how much it may send."""

    first_answer: float = 4.0
    """Seconds until the first answer has begun; whoever is offline waits no longer than this."""
    total: float = 60.0
    """Seconds for all files together."""
    max_bytes: int = 64 * 2**20
    """Largest file; the largest tokenizer.json that is published (262,144 entries) has 33 MB."""


HUB_LIMITS = HubLimits()


def is_repository(text: str) -> bool:
    """Whether a text has the form of a repository's name: "gpt2" or "owner/name"."""
    return bool(_REPOSITORY.fullmatch(text)) and ".." not in text


def fetch(repository: str, into: str | Path, limits: HubLimits = HUB_LIMITS) -> Path:
    """Bring a tokenizer's files into a folder.

    `HF_HUB_OFFLINE` and `HF_ENDPOINT` are honoured, as is a token in `HF_TOKEN` or where `hf auth login` left it.

    Args:
        repository: "owner/name"; revision "main" is taken.
        into: existing folder; on an error it may hold some of the files.
        limits: how long the Hub may take, and how much it may send.

    Returns:
        The folder that holds the files: `into`, or a folder of the Hub's own cache.

    Raises:
        HubError: there is nothing to be had; `kind` and the message say why.
    """
    if not is_repository(repository):
        raise HubError(f"{repository!r} is no name of a Hub repository; the form is 'owner/name'.", "missing")
    cached = _cached_folder(repository)
    if cached is not None:
        logger.info("%s: taken from the Hub's cache at %s", repository, cached)
        return cached
    if is_offline():
        raise HubError(
            f"{repository} is not in the local cache, and offline mode is set (HF_HUB_OFFLINE): the Hub is not asked.",
            "offline",
        )
    _within_deadlines(_Download(repository, Path(into), limits))
    return Path(into)


def is_offline() -> bool:
    """Whether the environment forbids asking the Hub."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


@dataclass
class _Download:
    """One repository's files on their way, seen from two threads."""

    repository: str
    into: Path
    limits: HubLimits
    answered: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    given_up: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    @property
    def host(self) -> str:
        """Host of the Hub, for messages."""
        return urlsplit(_endpoint()).hostname or _endpoint()

    def work(self) -> None:
        """Fetch everything; what goes wrong is kept for the thread that waits."""
        try:
            self._fetch_all()
        except BaseException as error:  # noqa: BLE001 - carried over to the waiting thread, which raises it
            self.error = error
        finally:
            self.ended.set()
            self.answered.set()

    def _fetch_all(self) -> None:
        for name in CONFIG_FILES:
            self._has(name)
        if not any(all(self._has(name) for name in names) for names in VOCABULARY_FILES):
            known = " or ".join(" with ".join(names) for names in VOCABULARY_FILES)
            raise HubError(f"{self.repository} does not exist on the Hub, or holds none of {known}.", "missing")

    def _has(self, name: str) -> bool:
        """Whether the repository holds the file, which is then fetched; any other refusal is raised."""
        try:
            self._get(name)
        except HubError as error:
            if error.kind != "absent":
                raise
            return False
        return True

    def _get(self, name: str) -> None:
        address = f"{_endpoint()}/{quote(self.repository)}/resolve/main/{name}"
        try:
            response = self._open(address)
        except urllib.error.HTTPError as error:
            with error:
                self.answered.set()
                raise _refusal(error, self.repository, name) from error
        except (OSError, http.client.HTTPException) as error:
            raise HubError(self._silence(error), "unreachable") from error
        with response:
            self.answered.set()
            self._write(response, self.into / name)

    def _silence(self, error: BaseException) -> str:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            return _late(self)
        return f"{self.host} cannot be reached ({str(reason) or type(reason).__name__})."

    def _open(self, address: str) -> http.client.HTTPResponse:
        request = urllib.request.Request(address, headers={"User-Agent": "transformer-builder-colab"})
        local = is_loopback(address)
        token = _token()
        if token and (address.startswith("https://") or local):
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the hosts behind redirects
        opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
        response: http.client.HTTPResponse = opener.open(request, timeout=self.limits.first_answer)
        return response

    def _write(self, response: http.client.HTTPResponse, path: Path) -> None:
        announced = response.headers.get("Content-Length", "")
        expected = int(announced) if announced.isdigit() else None
        if (expected or 0) > self.limits.max_bytes:
            raise HubError(self._too_large(path.name), "refused")
        with path.open("wb") as file:
            size = sum(self._copied(response, file, path.name))
        if expected is not None and size != expected:
            path.unlink()
            raise HubError(f"{path.name} of {self.repository} ended after {size} of {expected} bytes.", "unreachable")

    def _copied(self, response: http.client.HTTPResponse, file: IO[bytes], name: str) -> Iterator[int]:
        left = self.limits.max_bytes
        while chunk := self._read(response, name):
            left -= len(chunk)
            if left < 0:
                raise HubError(self._too_large(name), "refused")
            file.write(chunk)
            yield len(chunk)

    def _read(self, response: http.client.HTTPResponse, name: str) -> bytes:
        if self.given_up.is_set():
            raise HubError("given up", "unreachable")
        try:
            return response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise HubError(
                f"{self.host} broke off while sending {name} ({str(error) or type(error).__name__}).", "unreachable"
            ) from error

    def _too_large(self, name: str) -> str:
        return f"{name} of {self.repository} is larger than {self.limits.max_bytes:,} bytes; no tokenizer is."


def _within_deadlines(download: _Download, clock: Callable[[], float] = time.monotonic) -> None:
    end = clock() + download.limits.total
    threading.Thread(target=download.work, name="hub-download", daemon=True).start()
    if not download.answered.wait(download.limits.first_answer):
        download.given_up.set()
        raise HubError(_late(download), "unreachable")
    if not download.ended.wait(max(end - clock(), 0)):
        download.given_up.set()
        raise HubError(
            f"{download.repository} did not arrive from {download.host} within {download.limits.total:g} s.",
            "unreachable",
        )
    if download.error is not None:
        raise download.error


def _refusal(error: urllib.error.HTTPError, repository: str, name: str) -> HubError:
    """What a status means; the Hub's own header tells a missing repository (401 for strangers) from a gated one."""
    code = error.headers.get("X-Error-Code", "") if error.headers else ""
    if code == "RepoNotFound":
        return HubError(f"{repository} does not exist on the Hub, or is private.", "missing")
    if error.code == 404:
        return HubError(f"{repository} has no {name}.", "absent")
    if error.code in (401, 403):
        return HubError(
            f"{repository} is gated: access has to be granted on its page, and a token be set as HF_TOKEN "
            f"(HTTP {error.code}).",
            "gated",
        )
    return HubError(f"the Hub answered for {repository} with HTTP {error.code} ({error.reason}).", "unreachable")


def _cached_folder(repository: str) -> Path | None:
    """The folder of the Hub's own cache where it holds a whole tokenizer."""
    from huggingface_hub import try_to_load_from_cache

    for names in VOCABULARY_FILES:
        paths = [try_to_load_from_cache(repository, name, cache_dir=os.environ.get("HF_HUB_CACHE")) for name in names]
        if all(isinstance(path, str) for path in paths):
            return Path(str(paths[0])).parent
    return None


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")


def _token() -> str | None:
    """The Hub's token from the environment or the file of `hf auth login`. Colab's secrets, which ask, are left alone."""
    if os.environ.get("HF_TOKEN"):
        return os.environ["HF_TOKEN"].strip()
    from huggingface_hub import constants

    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(constants.HF_TOKEN_PATH).read_text("utf-8").strip() or None
    return None


def _late(download: _Download) -> str:
    return f"{download.host} did not answer within {download.limits.first_answer:g} s."
