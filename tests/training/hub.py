"""The part of the Hub that data sets need, on a loopback port: the list of a repository's files, and the files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class DatasetHub:
    """Serves repositories: name → files. A context manager; `url` goes into HF_ENDPOINT.

    Attributes:
        cards: name → head of the README ("configs").
        status: name → HTTP status of the list.
        error_codes: name → the Hub's X-Error-Code header.
        gated: names whose files are refused with 403.
        delay: seconds before any answer.
        requests: paths that were asked for.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.cards: dict[str, dict[str, Any]] = {}
        self.status: dict[str, int] = {}
        self.error_codes: dict[str, str] = {}
        self.gated: set[str] = set()
        self.delay = 0.0
        self.file_delay = 0.0
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> DatasetHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: DatasetHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """What a file system of the Hub asks before it opens files: /api/datasets/NAME/paths-info/REVISION."""
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        files = self.hub.repositories.get(path.removeprefix("/api/datasets/").split("/paths-info/")[0], {})
        known = [self._described(file, files[file]) for file in asked.get("paths", []) if file in files]
        self._send(200, json.dumps(known).encode(), True, {"Content-Type": "application/json"})

    @staticmethod
    def _described(file: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        time.sleep(self.hub.delay)
        if "/tree/" in path:
            files = self.hub.repositories.get(path.removeprefix("/api/datasets/").split("/tree/")[0], {})
            listed = [self._described(file, content) for file, content in files.items()]
            self._send(200, json.dumps(listed).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith("/api/datasets/"):
            name = path.removeprefix("/api/datasets/").split("/revision/")[0]
            self._list(name, body)
        else:
            name, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
            time.sleep(self.hub.file_delay)
            self._file(name, rest.partition("/")[2], body)

    def _list(self, name: str, body: bool) -> None:
        if name in self.hub.status or name not in self.hub.repositories:
            code = self.hub.error_codes.get(name, "RepoNotFound" if name not in self.hub.repositories else "")
            self._send(self.hub.status.get(name, 404), b'{"error": "no"}', body, {"X-Error-Code": code} if code else {})
            return
        files = self.hub.repositories[name]
        answer = {
            "id": name,
            "sha": COMMIT,
            "private": False,
            "gated": "auto" if name in self.hub.gated else False,
            "siblings": [{"rfilename": file, "size": len(content)} for file, content in files.items()],
            "cardData": self.hub.cards.get(name, {}),
        }
        self._send(200, json.dumps(answer).encode(), body, {"Content-Type": "application/json"})

    def _file(self, name: str, file: str, body: bool) -> None:
        content = self.hub.repositories.get(name, {}).get(file)
        if name in self.hub.gated:
            self._send(403, b"", body, {"X-Error-Code": "GatedRepo"})
        elif content is None:
            self._send(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            tag = hashlib.sha256(content).hexdigest()
            known = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted is None:
                self._send(200, content, body, known)
            else:
                begin, end = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
                known["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
                self._send(206, content[begin:end], body, known)

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass
