"""Long work behind the wizard: one code path, run by a thread where threads can paint, else in the caller's own.

Jupyter shows what a thread writes into a widget. Colab does not once the cell has ended (colabtools #3373), so there work
runs in the button's callback or in a cell, and the notebook's interrupt button is what stops it. Knows no widget.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.errors import TransformerBuilderError
from utils.notebook import in_colab
from utils.progress import ProgressCallback, ignore_progress

logger = logging.getLogger(__name__)

PAINT_SECONDS = 0.2
"""Between two notes of progress that are passed on: a browser cannot show more, and each one costs a message."""


class StopRequested(KeyboardInterrupt):
    """Somebody pressed Stop. A `KeyboardInterrupt`, as the notebook's own interrupt button raises: what can be interrupted
    there without loss can be stopped here.
    """


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    Attributes:
        value: what it gave; None where it failed or was stopped.
        error: what went wrong, for people; empty where nothing did.
        stopped: whether it was stopped or interrupted before its end.
        cause: the exception behind `error`; for the log and for cells, which raise it.
    """

    value: Any = None
    error: str = ""
    stopped: bool = False
    cause: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return not self.error and not self.stopped


class Ticket:
    """What a piece of work is given: where to report, and whether it should stop.

    Args:
        show: told about progress, at most every `PAINT_SECONDS`, from the thread that works.
        clock: monotonic seconds.
    """

    def __init__(self, show: ProgressCallback = ignore_progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock = show, clock
        self._stop = threading.Event()
        self._shown: float | None = None

    @property
    def stopping(self) -> bool:
        """Whether somebody asked this work to stop; for work that ends itself cleanly."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the work to stop."""
        self._stop.set()

    def progress(self, done: int, total: int | None = None, note: str = "", *, at_once: bool = False) -> None:
        """Report progress, as a `ProgressCallback`; ends the work here where somebody asked for it.

        Args:
            done: units done.
            total: units in total; None: unknown.
            note: what is being done.
            at_once: show it however short the last note was ago, since the next may be long in coming.

        Raises:
            StopRequested: somebody asked.
        """
        if self.stopping:
            raise StopRequested
        self.report(done, total, note, at_once=at_once)

    def report(self, done: int, total: int | None = None, note: str = "", *, at_once: bool = False) -> None:
        """As `progress`, and never ends the work."""
        now = self._clock()
        if at_once or self._shown is None or now - self._shown >= PAINT_SECONDS or done == total:
            self._shown = now
            self._show(done, total, note)


Job = Callable[[Ticket], Any]


class Worker:
    """Does one piece of work at a time.

    Args:
        in_thread: True works in a thread, False in the caller's; None asks whether this is Colab.

    Example:
        >>> worker = Worker()
        >>> worker.start(lambda ticket: validate(model, progress=ticket.progress), done=lambda outcome: paint(outcome))
    """

    def __init__(self, in_thread: bool | None = None) -> None:
        self.in_thread = not in_colab() if in_thread is None else in_thread
        self._turn = threading.Lock()
        self._ticket: Ticket | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether work is going on."""
        return self._turn.locked()

    def start(
        self, job: Job, show: ProgressCallback = ignore_progress, done: Callable[[Outcome], None] | None = None
    ) -> bool:
        """Begin a piece of work.

        Args:
            job: called with a ticket; what it returns becomes `Outcome.value`.
            show: told about progress.
            done: told how it ended, after the worker is free again.

        Returns:
            False where other work is still going on; nothing is begun then.
        """
        if not self._turn.acquire(blocking=False):
            return False
        ticket = self._ticket = Ticket(show)
        if not self.in_thread:
            self._work(job, ticket, done)
            return True
        # Imported here since it loads torch, for which the first paint need not wait.
        from utils.adapters.device_guard import keep_device_guard

        keep_device_guard()
        self._thread = threading.Thread(target=self._work, args=(job, ticket, done), name="wizard", daemon=True)
        self._thread.start()
        return True

    def run(
        self, job: Job, show: ProgressCallback = ignore_progress, done: Callable[[Outcome], None] | None = None
    ) -> Outcome:
        """Do a piece of work here, after the one that is going on: for a cell, which has nothing to do but wait for it.

        An interrupt while waiting asks the other work to stop, and this one is not begun.
        """
        try:
            while not self._turn.acquire(timeout=PAINT_SECONDS):
                continue  # in slices, since not every platform lets an interrupt through a long wait
        except KeyboardInterrupt:
            self.stop()
            return Outcome(stopped=True)
        ticket = self._ticket = Ticket(show)
        return self._work(job, ticket, done)

    def stop(self) -> None:
        """Ask the work to stop; without work, nothing."""
        if self._ticket is not None:
            self._ticket.stop()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the thread is done; whether it is. For cells and tests, never for a button."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)
        return not self.busy

    def _work(self, job: Job, ticket: Ticket, done: Callable[[Outcome], None] | None) -> Outcome:
        try:
            outcome = attempt(job, ticket)
        finally:
            self._ticket = None
            self._turn.release()
        if done is not None:
            done(outcome)
        return outcome


def attempt(job: Job, ticket: Ticket) -> Outcome:
    """Do a piece of work here and now, and say how it ended; an interrupt is an end like any other."""
    try:
        return Outcome(job(ticket))
    except KeyboardInterrupt:
        return Outcome(stopped=True)
    except Exception as error:
        logger.info("the work failed", exc_info=error)
        return Outcome(error=readable(error), cause=error)


def readable(error: BaseException) -> str:
    """An error for people: our own as it stands; a foreign one with its type, and what caused it."""
    if isinstance(error, TransformerBuilderError):
        return str(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    cause = error.__cause__
    return f"{text} (caused by {readable(cause)})" if cause is not None else text
