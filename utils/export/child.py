"""Runs exported files in a process of their own, so that a runtime that crashes or hangs does not take the notebook along.

`ChildRuntime` is the side that asks, `main` the side that answers; orders and answers are lines of JSON, arrays lie in files
beside them. The child knows runners and no exporters: for ONNX files it needs no torch and starts at once.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from utils.errors import ExportError, TransformerBuilderError
from utils.export.runner import Runner, open_file
from utils.export.signature import Signature

SECONDS = 600.0
"""How long one order may take; a runtime that needs longer hangs, or nobody could wait for it."""

_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from utils.export.child import main; main()"
_LAST_WORDS = 2_000  # characters of what a crashed child said


class ChildRuntime:
    """A process that opens and runs exported files; it is started at the first use, and again after a crash.

    Args:
        seconds: how long one order may take.
        threads: threads of the runtimes; None takes as many as torch uses here.

    Example:
        >>> with ChildRuntime() as child:
        ...     logits = child.open("onnx", Path("model.onnx")).run({"input_ids": ids})
    """

    def __init__(self, seconds: float = SECONDS, threads: int | None = None) -> None:
        self.seconds, self._threads = seconds, threads
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._folder = tempfile.TemporaryDirectory(prefix="export-child-", ignore_cleanup_errors=True)
        self._number, self._open = 0, set[int]()

    def __enter__(self) -> ChildRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, format_name: str, path: Path) -> ChildRunner:
        """Open a file over there.

        Raises:
            ExportError: the file cannot be read as its format, or reading it crashed the process.
        """
        self._number += 1
        answer = self.ask({"do": "open", "format": format_name, "path": str(path), "key": self._number})
        self._open.add(self._number)
        return ChildRunner(self, self._number, path, Signature.from_json(answer["signature"]), answer["facts"])

    def exchange(self, feeds: Mapping[str, np.ndarray], key: int) -> tuple[np.ndarray, float]:
        """Run an opened file; returns its logits and milliseconds."""
        given, made = Path(self._folder.name) / "feeds.npz", Path(self._folder.name) / "logits.npy"
        np.savez(given, **dict(feeds))  # type: ignore[arg-type]
        answer = self.ask({"do": "run", "key": key, "feeds": str(given), "logits": str(made)})
        return np.load(made), float(answer["ms"])

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send one order and wait for its answer.

        Raises:
            ExportError: the child reports an error, crashes, or does not answer in time.
        """
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=self.seconds)
        except queue.Empty:
            self._end()
            raise ExportError(
                f"The runtime did not answer within {self.seconds:g} s and was ended ({_words(order)}). Try a shorter length limit."
            ) from None
        except OSError:
            line = ""
        if not line:
            raise ExportError(self._obituary(order))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ExportError(answer["error"])
        return answer

    def release(self, key: int) -> None:
        """Close one file; a process that crashed has let go of it already."""
        if self._process is not None and self._process.poll() is None and key in self._open:
            self.ask({"do": "close", "key": key})
        self._open.discard(key)

    def close(self) -> None:
        """End the process and remove its files."""
        self._end()
        self._folder.cleanup()

    # ---- the process ------------------------------------------------------------------------------------------------
    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._answers, self._open = queue.Queue(), set()
            with open(self._said, "w", encoding="utf-8") as said:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        _START,
                        str(_ROOT),
                        str(self._threads or _threads_here()),
                        self._folder.name,
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    encoding="utf-8",
                )
            threading.Thread(target=_listen, args=(self._process, self._answers), daemon=True).start()
        return self._process

    @property
    def _said(self) -> Path:
        return Path(self._folder.name) / "said.txt"

    def _obituary(self, order: dict[str, Any]) -> str:
        assert self._process is not None
        code = self._process.wait()
        how = f"with exit code {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
        words = self._said.read_text("utf-8", "replace").strip()[-_LAST_WORDS:]
        self._end()
        return f"The runtime's process ended {how} ({_words(order)}). Last words: {words or 'none'}"

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except OSError:  # what was still to be sent no longer matters
                        continue
            self._process = None


class ChildRunner(Runner):
    """A file that is open in a `ChildRuntime`."""

    def __init__(
        self, child: ChildRuntime, key: int, path: Path, signature: Signature, facts: Mapping[str, str]
    ) -> None:
        self._child, self._key, self._path = child, key, path
        self.signature, self.facts = signature, facts

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.run`."""
        return self.timed(feeds)[0]

    def timed(self, feeds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float]:
        """See `Runner.timed`; the time of the way between the processes does not count."""
        return self._child.exchange(feeds, self._key)

    def close(self) -> None:
        """Close the file over there; the process stays for others."""
        self._child.release(self._key)


def _words(order: dict[str, Any]) -> str:
    if order["do"] == "open":
        return f"opening {Path(order['path']).name}"
    return "running the file" if order["do"] == "run" else "closing the file"


def _threads_here() -> int:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1


def _listen(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    """Hand lines on; an empty one says that there will be no more."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            answers.put(line)
    except (OSError, ValueError):  # closed by the side that asks
        pass
    answers.put("")


# ---- the child ------------------------------------------------------------------------------------------------------
def main() -> None:
    """Answer orders until standard input ends. Whatever a runtime prints goes to standard error; it finds nothing to read."""
    orders, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    opened: dict[int, Runner] = {}
    threads = int(sys.argv[2])
    for line in orders:
        try:
            answer = _answer(json.loads(line), opened, threads)
        except TransformerBuilderError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001  whatever a runtime raises is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    shutil.rmtree(sys.argv[3], ignore_errors=True)  # the side that asks was killed, and can no longer remove it


def _answer(order: dict[str, Any], opened: dict[int, Runner], threads: int) -> dict[str, Any]:
    key = order["key"]
    if order["do"] == "open":
        opened[key] = runner = open_file(order["format"], Path(order["path"]), threads)
        return {"signature": runner.signature.to_json(), "facts": dict(runner.facts)}
    if key not in opened:
        raise ExportError("The file is no longer open: it was closed, or its process crashed since. Open it again.")
    if order["do"] == "close":
        opened.pop(key).close()
        return {}
    with np.load(order["feeds"]) as feeds:
        logits, milliseconds = opened[key].timed(dict(feeds))
    np.save(order["logits"], logits)
    return {"ms": milliseconds}
