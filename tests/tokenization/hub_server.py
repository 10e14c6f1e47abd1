"""A Hugging Face Hub on a loopback port that serves files and misbehaves as told."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class HubServer:
    """Serves `/owner/name/resolve/main/file`.

    Attributes:
        files: repository → name → content.
        refusals: repository → (status, X-Error-Code or "").
        hang: "" for no fault, "accept" answers nothing, "body" sends headers and half of each file, "trickle" sends a byte
            at a time.
        redirect: whether files are sent from another path, as the Hub does for large ones.
        requests: paths that were asked for; tokens: the Authorization header of each.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.hang, self.redirect, self.cut = "", False, False
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, name: str) -> int:
        """How often a file was asked for."""
        return sum(path.endswith(f"/{name}") for path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        self.hub.requests.append(self.path)
        self.hub.tokens.append(self.headers.get("Authorization"))
        if self.hub.hang == "accept":
            self.hub.stopped.wait(30)
            return
        moved = self.path.startswith("/cdn/")
        repository, _, name = unquote(self.path).removeprefix("/cdn").strip("/").partition("/resolve/main/")
        if repository in self.hub.refusals:
            status, code = self.hub.refusals[repository]
            self._send(status, b"refused", {"X-Error-Code": code} if code else {})
        elif name not in self.hub.files.get(repository, {}):
            known = repository in self.hub.files
            self._send(404, b"none", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
        elif self.hub.redirect and not moved:
            self._send(302, b"", {"Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn{self.path}"})
        else:
            self._send(200, self.hub.files[repository][name], {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self._send_body(body)
        except OSError:
            self.close_connection = True

    def _send_body(self, body: bytes) -> None:
        if self.hub.hang == "body":
            self.wfile.write(body[: len(body) // 2])
            self.hub.stopped.wait(30)
        elif self.hub.hang == "trickle":
            for place in range(len(body)):
                if self.hub.stopped.is_set():
                    return
                self.wfile.write(body[place : place + 1])
                time.sleep(0.05)
        elif self.hub.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""
