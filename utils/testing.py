"""Fakes for tests and demonstrations: tiny model sources, a loopback gist server, a clock that is moved by hand.

Imports no torch. Nothing here is used by the library itself.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

GIST_ID = "0123456789abcdef0123456789abcdef"
"""An id that no real gist has."""

_HEAD = "import torch\nfrom torch import nn\n\n\n"
_TENSOR_MODEL = _HEAD + (
    "class TinyModel(nn.Module):\n"
    '    """Embedding, one linear layer, tied head."""\n\n'
    "    def __init__(self, vocab_size=50, d_model=8):\n"
    "        super().__init__()\n"
    "        self.embedding = nn.Embedding(vocab_size, d_model)\n"
    "        self.mix = nn.Linear(d_model, d_model)\n"
    "        self.head = nn.Linear(d_model, vocab_size)\n\n"
    "    def forward(self, input_ids):\n"
    "        return self.head(torch.tanh(self.mix(self.embedding(input_ids))))\n"
)
_CONFIG_MODEL = (
    "from dataclasses import dataclass\n\n"
    + _HEAD
    + (
        "@dataclass\n"
        "class TinyConfig:\n"
        "    block_size: int = 16\n"
        "    vocab_size: int = 60\n"
        "    n_embd: int = 12\n"
        "    n_layer: int = 1\n\n\n"
        "class Block(nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.mlp = nn.Linear(config.n_embd, config.n_embd)\n\n"
        "    def forward(self, x):\n"
        "        return x + self.mlp(x)\n\n\n"
        "class TinyGPT(nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.config = config\n"
        "        self.wte = nn.Embedding(config.vocab_size, config.n_embd)\n"
        "        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))\n"
        "        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)\n\n"
        "    def forward(self, idx, targets=None):\n"
        "        x = self.wte(idx)\n"
        "        for block in self.h:\n"
        "            x = block(x)\n"
        "        return self.lm_head(x), None\n"
    )
)
_TWO_FILES_MAIN = _HEAD + (
    "import blocks\n"
    "from blocks import WIDTH\n\n\n"
    "class Model(nn.Module):\n"
    "    def __init__(self):\n"
    "        super().__init__()\n"
    "        self.embedding = nn.Embedding(40, WIDTH)\n"
    "        self.block = blocks.Block(WIDTH)\n"
    "        self.head = nn.Linear(WIDTH, 40)\n\n"
    "    def forward(self, input_ids):\n"
    "        return self.head(self.block(self.embedding(input_ids)))\n"
)
_TWO_FILES_BLOCKS = (
    "from torch import nn\n\nWIDTH = 8\n\n\nclass Block(nn.Linear):\n"
    "    def __init__(self, width):\n        super().__init__(width, width)\n"
)

TINY_SOURCES: dict[str, dict[str, str]] = {
    "tensor": {"model.py": _TENSOR_MODEL, "config.json": '{"vocab_size": 50, "d_model": 8, "max_seq_len": 16}'},
    "nodes": {
        "model.py": _TENSOR_MODEL,
        "config.json": json.dumps(
            {
                "version": "1.0",
                "model_name": "Tiny Model",
                "nodes": [
                    {"id": "embedding_0", "type": "embedding", "params": {"vocab_size": 30, "d_model": 8}},
                    {"id": "output_0", "type": "output", "params": {}},
                ],
                "edges": [{"source": "embedding_0", "target": "output_0"}],
            }
        ),
    },
    "config_class": {
        "model.py": _CONFIG_MODEL,
        "config.json": '{"vocab_size": 70, "hidden_size": 16, "num_layers": 2}',
    },
    "two_files": {"model.py": _TWO_FILES_MAIN, "blocks.py": _TWO_FILES_BLOCKS},
    "no_config": {"model.py": _TENSOR_MODEL},
    "other_name": {"my_transformer.py": _TENSOR_MODEL, "notes.md": "# Notes"},
    "syntax_error": {"model.py": _HEAD + "class Broken(nn.Module)\n    pass\n"},
    "raises": {
        "model.py": _HEAD
        + "class Broken(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.x = 1 / 0\n"
    },
    "dangerous": {
        "model.py": "import os\n" + _HEAD + "os.system('true')\n\n\nclass Model(nn.Module):\n    pass\n",
    },
}
"""Name → files of a tiny model (or of one that must be refused): what a gist or a folder would hold."""


class FakeClock:
    """A clock that moves only when told: call it for the time, `sleep` to move it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move ahead by `seconds` and remember it."""
        self.sleeps.append(seconds)
        self.now += seconds


@dataclass
class Behaviour:
    """How the server misbehaves for one gist.

    Attributes:
        status: HTTP status of the first `times` answers.
        times: how many answers misbehave (status, delay, cut); None for all.
        headers: sent with those answers.
        delay: seconds before the answer.
        redirect: address that API requests are sent to.
        raw_redirect: address that raw requests are sent to.
        cut: bytes after which the connection ends, though more were announced.
        truncated_list: say that the list of files was cut short.
        truncated: names of files whose text is cut after 10 characters, to be had at the raw address.
        raw_url: raw address to give instead of the server's own.
        sizes: name → size to claim.
        answer: sent instead of the JSON answer.
        overrides: top-level keys that replace those of the answer.
    """

    status: int = 200
    times: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    redirect: str | None = None
    raw_redirect: str | None = None
    cut: int | None = None
    truncated_list: bool = False
    truncated: tuple[str, ...] = ()
    raw_url: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    answer: bytes | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def rate_limited(reset_at: float) -> Behaviour:
    """Refuse with 403 until `reset_at` (seconds since the epoch), as GitHub does."""
    return Behaviour(403, headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(reset_at))})


class GistServer:
    """The part of the GitHub API that gists need, on a loopback port.

    Example:
        >>> with GistServer({GIST_ID: TINY_SOURCES["tensor"]}) as server:
        ...     os.environ["GITHUB_API_URL"] = server.url

    Attributes:
        url: base address, for GITHUB_API_URL.
        requests: paths that were asked for, in order.
        headers: headers of those requests.
        behaviours: gist id → Behaviour.
    """

    def __init__(self, gists: Mapping[str, Mapping[str, str | bytes]] | None = None, **behaviours: Behaviour) -> None:
        self.history: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.behaviours: dict[str, Behaviour] = dict(behaviours)
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        for gist_id, files in (gists or {}).items():
            self.add(gist_id, files)
        handler = type("Handler", (_Handler,), {"gists": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def add(self, gist_id: str, files: Mapping[str, str | bytes]) -> str:
        """Publish `files` as the newest revision of a gist; returns the revision (40 hex digits)."""
        content = {name: text if isinstance(text, bytes) else text.encode("utf-8") for name, text in files.items()}
        past = self.history.setdefault(gist_id, [])
        seed = f"{gist_id} {len(past)} {sorted(content.items())}"
        past.append((hashlib.sha1(seed.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest(), content))
        return past[-1][0]

    def revision(self, gist_id: str) -> str:
        """The newest revision of a gist."""
        return self.history[gist_id][-1][0]

    def misbehave(self, gist_id: str, behaviour: Behaviour) -> None:
        """Answer for this gist as `behaviour` says."""
        self.behaviours[gist_id] = behaviour

    def __enter__(self) -> GistServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def answer(self, gist_id: str, revision: str | None, behaviour: Behaviour) -> dict[str, Any] | None:
        """The API's answer, or None where there is no such gist or revision."""
        past = self.history.get(gist_id, [])
        versions = [version for version, _ in past]
        if not past or (revision is not None and revision not in versions):
            return None
        end = versions.index(revision) + 1 if revision else len(past)
        version, content = past[end - 1]
        answer = {
            "id": gist_id,
            "url": f"{self.url}/gists/{gist_id}",
            "truncated": behaviour.truncated_list,
            "files": {name: self._entry(gist_id, version, name, data, behaviour) for name, data in content.items()},
            "history": [{"version": past_version} for past_version in reversed(versions[:end])],
        }
        return {**answer, **behaviour.overrides}

    def _entry(self, gist_id: str, version: str, name: str, data: bytes, behaviour: Behaviour) -> dict[str, Any]:
        cut = name in behaviour.truncated
        text = data.decode("utf-8", errors="replace")
        return {
            "filename": name,
            "size": behaviour.sizes.get(name, len(data)),
            "truncated": cut,
            "content": text[:10] if cut else text,
            "raw_url": behaviour.raw_url or f"{self.url}/raw/{gist_id}/{version}/{quote(name, safe='')}",
        }


class _Handler(BaseHTTPRequestHandler):
    """Answers one request for its `GistServer`."""

    gists: GistServer

    def do_GET(self) -> None:
        self.gists.requests.append(self.path)
        self.gists.headers.append(dict(self.headers.items()))
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/") if part]
        gist_id = parts[1] if len(parts) > 1 else ""
        behaviour = self.gists.behaviours.get(gist_id, Behaviour())
        active = behaviour.times is None or behaviour.times > 0
        if active and behaviour.times is not None:
            behaviour.times -= 1
        if active and behaviour.delay:
            time.sleep(behaviour.delay)
        redirect = behaviour.raw_redirect if parts[:1] == ["raw"] else behaviour.redirect
        if redirect is not None:
            self._send(302, b"", {"Location": redirect})
        elif active and behaviour.status != 200:
            self._send(behaviour.status, b'{"message": "refused"}', behaviour.headers)
        else:
            self._send_found(parts, behaviour, behaviour.cut if active else None)

    def _send_found(self, parts: list[str], behaviour: Behaviour, cut: int | None) -> None:
        body: bytes | None = None
        if parts[:1] == ["gists"] and len(parts) in (2, 3):
            answer = self.gists.answer(parts[1], parts[2] if len(parts) == 3 else None, behaviour)
            body = None if answer is None else json.dumps(answer).encode("ascii")
            body = behaviour.answer if answer is not None and behaviour.answer is not None else body
        elif parts[:1] == ["raw"] and len(parts) == 4:
            body = dict(self.gists.history.get(parts[1], [])).get(parts[2], {}).get(parts[3])
        if body is None:
            self._send(404, b'{"message": "Not Found"}', {})
        else:
            self._send(200, body, behaviour.headers, cut)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body if cut is None else body[:cut])
        except OSError:
            self.close_connection = True  # the client gave up, as some tests want

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output quiet."""
