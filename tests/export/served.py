"""A folder's server.py in a process of its own, and what it is asked."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


class Server:
    """Starts, and answers /health when made.

    Args:
        folder: the exported folder.
        arguments: further options of server.py.
        python: the interpreter that runs it.
    """

    def __init__(self, folder: Path, *arguments: str, python: str = sys.executable) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [python, "server.py", "--port", str(self.port), "--log-level", "error", *arguments]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE)
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self.ask("/health")[0] == 200:
                    return
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"server.py did not start: {self.process.stderr.read().decode()}")  # type: ignore[union-attr]

    def ask(self, path: str, body: Any = None, headers: Any = None) -> tuple[int, Any, Any]:
        """Status, content and headers; POST where there is a body, which may be raw."""
        data = json.dumps(body) if body is not None and not isinstance(body, (str, bytes)) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            sent = {"Content-Type": "application/json", **(headers or {})}
            connection.request("GET" if body is None else "POST", path, data, sent)
            answer = connection.getresponse()
            text, kind = answer.read().decode(), answer.headers["Content-Type"] or ""
            return answer.status, json.loads(text) if kind.startswith("application/json") else text, answer.headers
        finally:
            connection.close()

    def events(self, path: str, body: Any) -> list[Any]:
        """What was streamed, [DONE] left out."""
        status, text, headers = self.ask(path, {**body, "stream": True})
        assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    def resident_bytes(self) -> int:
        """Memory that the process holds, as Linux tells it."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text("utf-8").splitlines()
        (told,) = [line for line in lines if line.startswith("VmRSS:")]
        return int(told.split()[1]) * 1024

    def stop(self) -> None:
        """End it as a container's runtime does."""
        self.process.terminate()
        self.process.wait(20)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, python: str = sys.executable) -> Iterator[Server]:
    """A server for the time of a block."""
    server = Server(folder, *arguments, python=python)
    try:
        yield server
    finally:
        server.stop()


def waited(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder."""
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def loaded(folder: Path, name: str) -> ModuleType:
    """One of the folder's scripts that needs none of the others."""
    spec = importlib.util.spec_from_file_location(f"bundle_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
