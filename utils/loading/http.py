"""GET with caps on bytes and time, an allow-list of hosts that holds for redirects too, and retries. Knows no gists."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import logging
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import IO
from urllib.parse import SplitResult, urlsplit

from utils.errors import GistContentError, GistError, GistNotFoundError, GistRateLimitError, GistUnreachableError

_LOG = logging.getLogger(__name__)
_RAW_HOSTS = frozenset({"gist.githubusercontent.com", "raw.githubusercontent.com"})
_RETRIED = frozenset({408, 500, 502, 503, 504})
_MAX_REDIRECTS = 5
_CHUNK = 65_536


@dataclass(frozen=True)
class Limits:
    """How long and how often a request is tried."""

    attempts: int = 4
    """Tries per request, the first included."""
    first_delay: float = 0.5
    """Seconds before the second try; doubles with each further one."""
    timeout: float = 15.0
    """Seconds that the server may stay silent."""
    deadline: float = 60.0
    """Seconds that one answer may take in all."""


@dataclass(frozen=True)
class Client:
    """Fetches from one API host and from GitHub's raw hosts, from nowhere else."""

    api_url: str
    token: str | None = field(default=None, repr=False)
    limits: Limits = Limits()
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def get(self, url: str, max_bytes: int, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of a successful answer.

        Raises:
            GistUnreachableError: no answer or server errors, after all tries.
            GistRateLimitError: 403 or 429; the message names the local time from which requests are allowed again.
            GistNotFoundError: 404.
            GistContentError: the answer is larger than `max_bytes`, or leads to another host.
        """
        delay = self.limits.first_delay
        for attempt in range(1, self.limits.attempts + 1):
            try:
                return self._get_once(url, max_bytes, headers or {})
            except (_Retry, OSError, http.client.HTTPException) as error:
                if isinstance(error, GistError):
                    raise
                reason = _words(error)
                if attempt == self.limits.attempts:
                    raise GistUnreachableError(
                        f"{_host(url)} did not give a complete answer in {attempt} tries: {reason}. Check the connection "
                        "and try again in a minute."
                    ) from error
                _LOG.info("%s: %s; trying again in %.1f s", _host(url), reason, delay)
                self.sleep(delay)
                delay *= 2
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _get_once(self, url: str, max_bytes: int, headers: Mapping[str, str]) -> bytes:
        check_url(url, self.api_url)
        request = urllib.request.Request(url, headers={"User-Agent": "transformer-builder-colab", **headers})
        if self.token and _host(url) == _host(self.api_url):
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        handlers: list[urllib.request.BaseHandler] = [_Redirects(self.api_url)]
        if is_loopback(self.api_url):
            handlers.append(urllib.request.ProxyHandler({}))
        started = self.clock()
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=self.limits.timeout) as response:
                return self._read(response, max_bytes, started, url)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error, url) from error
        except GistError:
            raise
        except ValueError as error:  # urllib takes a redirect's address apart before it asks `_Redirects`
            raise GistContentError(f"{_host(url)} leads to what is no address: {error}.") from error

    def _read(self, response: http.client.HTTPResponse, max_bytes: int, started: float, url: str) -> bytes:
        announced = response.headers.get("Content-Length")
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > max_bytes:
                raise GistContentError(f"The answer of {_host(url)} is larger than {max_bytes:,} bytes; it is refused.")
            if self.clock() - started > self.limits.deadline:
                raise _Retry(f"the answer took longer than {self.limits.deadline:.0f} s")
        if announced is not None and announced.isdigit() and len(body) != int(announced):
            raise _Retry(f"the answer broke off after {len(body):,} of {int(announced):,} bytes")
        return bytes(body)


class _Retry(Exception):
    """Something that another try may mend."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to a host of the allow-list."""

    max_redirections = _MAX_REDIRECTS

    def __init__(self, api_url: str) -> None:
        self.api_url = api_url

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        check_url(newurl, self.api_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def check_url(url: str, api_url: str) -> None:
    """Refuse every address but the API's own host and GitHub's raw hosts.

    Loopback addresses are allowed only where the API itself is one (tests, local mirrors).

    Raises:
        GistContentError: with the host that was refused.
    """
    parts, port, api = *_split(url), urlsplit(api_url)
    local = is_loopback(url) and is_loopback(api_url)
    same = parts.hostname == api.hostname and port == api.port and parts.scheme == api.scheme
    official = parts.hostname in _RAW_HOSTS and port in (None, 443) and parts.scheme == "https"
    if parts.username is not None or parts.scheme not in ("http", "https") or not (same or official or local):
        raise GistContentError(
            f"The gist leads to {parts.scheme!a}://{parts.hostname!a}, which is neither the API's host nor one "
            f"of {', '.join(sorted(_RAW_HOSTS))}; nothing is fetched from there."
        )


def _split(url: str) -> tuple[SplitResult, int | None]:
    """Parts and port of an address that came from outside."""
    try:
        parts = urlsplit(url)
        if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
            raise ValueError("it holds characters that no address holds")
        return parts, parts.port
    except ValueError as error:
        raise GistContentError(f"The gist leads to {url[:200]!a}, which is no address: {error}.") from error


def is_loopback(url: str) -> bool:
    """Whether a URL points to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    """What an HTTP status means for the user."""
    headers = error.headers
    if error.code in _RETRIED:
        return _Retry(f"the server answered {error.code} ({error.reason})")
    if 300 <= error.code < 400:
        return GistContentError(
            f"{_host(url)} redirects in circles or to an unsafe address; nothing is fetched from there."
        )
    if error.code in (403, 429):
        return _limited(error.code, headers)
    if error.code in (404, 410, 422):
        return GistNotFoundError(
            f"{_host(url)} knows no gist at {urlsplit(url).path} ({error.code}). Check the id and the revision; a deleted "
            "gist, or one whose link was mistyped, looks the same."
        )
    if error.code == 401:
        return GistUnreachableError(
            f"{_host(url)} refused the token in GITHUB_TOKEN (401). Remove it (public and secret gists need none) or renew it."
        )
    return GistUnreachableError(f"{_host(url)} answered {error.code} ({error.reason}).")


def _limited(code: int, headers: Message) -> GistError:
    reset_at = _reset_time(headers)
    if reset_at is None and code == 403 and headers.get("X-RateLimit-Remaining", "0") != "0":
        return GistUnreachableError(
            "GitHub refuses to show this gist (403): it is blocked, or the token may not read it."
        )
    when = "in about an hour" if reset_at is None else _local_time(reset_at)
    return GistRateLimitError(
        f"GitHub's rate limit is used up ({code}); requests are allowed again {when}. Colab machines share their address "
        "with others: a token in the environment variable GITHUB_TOKEN lifts the limit, or give a folder instead.",
        reset_at,
    )


def _reset_time(headers: Message) -> float | None:
    """Seconds since the epoch, from Retry-After or X-RateLimit-Reset."""
    wait, reset = headers.get("Retry-After", ""), headers.get("X-RateLimit-Reset", "")
    if wait.isdigit() and len(wait) < 8:
        return time.time() + int(wait)
    return float(reset) if reset.isdigit() and len(reset) < 12 else None


def _local_time(moment: float) -> str:
    local = datetime.datetime.fromtimestamp(moment).astimezone()
    minutes = max(0, round((moment - time.time()) / 60))
    ahead = "less than a minute" if minutes < 1 else "1 minute" if minutes == 1 else f"{minutes} minutes"
    return f"at {local:%H:%M} on {local:%d %B %Y} ({local.tzname()}), in {ahead}"


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError | socket.timeout):
        return "no answer in time"
    if isinstance(reason, socket.gaierror):
        return "its name cannot be resolved (no network?)"
    return str(reason) or type(reason).__name__


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]
