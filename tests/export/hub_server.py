"""The part of the Hub that receives models, on a loopback port: repositories, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34
"""The only token that may write."""

_LARGE = (".safetensors", ".onnx", ".png")


@dataclass
class ModelHub:
    """What the server holds, and how it misbehaves.

    Attributes:
        repositories: name → {"private": …, "branches": {branch: {file: content}}}.
        blobs: SHA-256 → content of large files.
        requests: "METHOD path" in order.
        faults: part of a path → (status, headers, text) with which it is answered.
        url: base address, once it is served.
    """

    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: dict[str, tuple[int, dict[str, str], str]] = field(default_factory=dict)
    url: str = ""

    def add(self, name: str, private: bool) -> None:
        """A new repository with an empty branch main."""
        self.repositories[name] = {"private": private, "branches": {"main": {}}}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """The class that answers for this hub."""
        return type("Handler", (_Handler,), {"hub": self})


class _Handler(BaseHTTPRequestHandler):
    hub: ModelHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        fault = next((answer for part, answer in self.hub.faults.items() if part in path), None)
        if fault is not None:
            return self._send(fault[0], fault[2].encode(), fault[1])
        if not path.startswith("/blobs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, b"{}", {"X-Error-Message": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if path.startswith("/blobs/"):
            self.hub.blobs[path.removeprefix("/blobs/")] = body
            return self._send(200, b"", {})
        name, _, rest = path.removeprefix("/api/models/").partition("/")
        name, _, rest = f"{name}/{rest.partition('/')[0]}", "", rest.partition("/")[2]
        return self._of_repository(name, rest, body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if name in self.hub.repositories else 200
        if status == 200:
            self.hub.add(name, asked.get("visibility") == "private")
        self._json({"url": f"{self.hub.url}/{name}", "name": name}, status)

    def _of_repository(self, name: str, rest: str, body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        verb, _, branch = rest.partition("/")
        if verb == "branch":
            repository["branches"].setdefault(branch, {})
            return self._send(200, b"{}", {})
        if verb == "preupload":
            return self._json({"files": [self._mode(entry["path"]) for entry in json.loads(body)["files"]]})
        if verb == "commit":
            repository["branches"][branch].update(self._committed(body))
            return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/abc", "commitOid": "abc"})
        return self._json({"id": name, "modelId": name, "private": repository["private"], "siblings": [], "tags": []})

    def _mode(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "lfs" if path.endswith(_LARGE) else "regular", "shouldIgnore": False}

    def _committed(self, body: bytes) -> dict[str, bytes]:
        files = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        return files

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{one['oid']}"}}} for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep the test output quiet."""
