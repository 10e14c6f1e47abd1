"""Runs checks in a process of their own, so that a model that crashes, hangs or eats memory does not take the notebook along.

The process gets the model once and answers one check after the other. A check that ends it has failed, and the next one
finds a new process. This bounds a model that misbehaves; it is no wall against one that means harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

from utils.checks.limits import MB, Limits
from utils.checks.report import CheckResult
from utils.checks.runner import Check
from utils.errors import CheckError

if TYPE_CHECKING:
    from utils.checks.session import AnyModel

GRACE = 5.0
"""Seconds beyond its bound that a check gets to end by itself, which tells more than ending its process."""
STARTING = 300.0
"""Seconds that the process may take to import torch and to read the model."""

_LOOK = 0.05  # seconds between two looks at the process
_LAST_WORDS = 2_000  # characters of what a crashed process said
_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from utils.checks.child import main; main(sys.argv[2])"


class _Ended(Exception):
    """The process ended, or had to be ended, before it answered; the message says why."""


class IsolatedChecks:
    """The process that runs checks, started at the first of them and again after one that ended it.

    Args:
        adapted: the model; a copy of it goes over, so that it stays as it is whatever happens. What it is and what comes
            with it is handed to the checks as it stands: `session.rehearse` sends a model that is not adapted yet.
        sampler: draws its inputs.

    Raises:
        CheckError: the model cannot be written down for another process.

    Example:
        >>> with IsolatedChecks(adapted, Sampler.of(adapted)) as checks:
        ...     result = checks.run(shapes.check, Limits(seconds=60))
    """

    def __init__(self, adapted: AnyModel, sampler: object) -> None:
        self._name = _name_of(adapted)
        self._process: subprocess.Popen[bytes] | None = None
        self._number, self._resident = 0, 0
        self._folder = tempfile.TemporaryDirectory(prefix="checks-child-", ignore_cleanup_errors=True)
        self._home = Path(self._folder.name)
        try:
            _write_down(adapted, sampler, self._home / "model.pickle")
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> IsolatedChecks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._folder.cleanup()

    def run(self, check: Check, limits: Limits) -> CheckResult:
        """The result of one check; one that ended the process, or did not answer in time, has failed."""
        return self.ask(check, check.name, limits)

    def ask(self, job: Callable[..., CheckResult], name: str, limits: Limits) -> CheckResult:
        """What a function of a module says of the model and of what came with it; called there as a check is.

        Args:
            job: found again there by its module and name.
            name: of the result, where the process ended.
            limits: of the job.
        """
        started = time.monotonic()
        try:
            if self._process is None:
                self._start()
            return self._ask(job, limits)
        except _Ended as ended:
            self._end()
            return CheckResult(
                name,
                "fail",
                f"The check could not finish on {self._name}: {ended}",
                cause="The model ended or blocked the process that it ran in.",
                fix="Run the model on these inputs by itself, in a script, and mend what ends it; then check again.",
                unfinished=str(ended),
                seconds=time.monotonic() - started,
            )

    # ---- the process ------------------------------------------------------------------------------------------------
    def _start(self) -> None:
        with (self._home / "said.txt").open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(_ROOT), str(self._home)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt is for us, who end it
            )
        self._wait(self._home / "ready.json", STARTING, None)
        self._resident = self._held()

    def _ask(self, job: Callable[..., CheckResult], limits: Limits) -> CheckResult:
        assert self._process is not None and self._process.stdin is not None
        self._number += 1
        answer = self._home / f"{self._number}.pickle"
        order = {
            "module": job.__module__,
            "check": job.__name__,
            "seconds": limits.seconds,
            "bytes": limits.bytes,
            "answer": str(answer),
        }
        with contextlib.suppress(BrokenPipeError):  # it ended between two checks: the next look says so
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        self._wait(answer, limits.seconds, limits.bytes)
        result = pickle.loads(answer.read_bytes())
        answer.unlink()
        assert isinstance(result, CheckResult)
        return result

    def _wait(self, answer: Path, seconds: float | None, most: float | None) -> None:
        """Until the file is there.

        Raises:
            _Ended: the process ended, or a bound was passed.
        """
        assert self._process is not None
        ends = time.monotonic() + seconds + GRACE if seconds is not None else None
        while not answer.exists():
            if self._process.poll() is not None and not answer.exists():
                raise _Ended(self._obituary(self._process.returncode))
            if ends is not None and time.monotonic() > ends:
                raise _Ended(f"it did not end within {seconds:g} s, and its process was ended.")
            if most is not None and (taken := self._held() - self._resident) > most:
                raise _Ended(
                    f"it took {taken / MB:,.0f} MB of memory and may take {most / MB:,.0f} MB; its process was ended."
                )
            time.sleep(_LOOK)

    def _held(self) -> int:
        """Bytes that the process holds in memory; 0 for one that has just ended."""
        assert self._process is not None
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def _obituary(self, code: int) -> str:
        said = (self._home / "said.txt").read_text("utf-8", errors="replace")[-_LAST_WORDS:].strip()
        by = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return f"its process ended with {by}" + (f". It said last: {said}" if said else ".")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        process.kill()
        process.wait()
        (self._home / "ready.json").unlink(missing_ok=True)


def _name_of(model: AnyModel) -> str:
    """What people call a model, in whichever wrapping it is."""
    return str(getattr(model, "name", None) or type(getattr(model, "model", model)).__name__)


def _write_down(adapted: AnyModel, sampler: object, path: Path) -> None:
    """The model and its sampler as a file. Classes of a notebook's own cells go along by value."""
    import cloudpickle
    import torch

    settings = {"threads": torch.get_num_threads(), "path": [entry or os.getcwd() for entry in sys.path]}
    try:
        with path.open("wb") as file:
            pickle.dump(settings, file)
            cloudpickle.dump((adapted, sampler), file)
    except Exception as error:  # whatever a stranger's __reduce__ raises: told once, with what to do
        raise CheckError(
            f"{_name_of(adapted)} cannot be sent to another process ({type(error).__name__}: {error}). Check it in this one: "
            "validate(…, isolated=False)."
        ) from error
