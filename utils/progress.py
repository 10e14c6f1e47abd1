"""One throttled progress display: a rewritten line in a terminal, plain lines in a log, one output in a notebook.

Knows counts, a clock and a stream; leaves what is counted to the caller. Library code never prints: it takes a callable
`(done, total, note)`, and an open `Progress` is such a callable.
"""

from __future__ import annotations

import contextlib
import html
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from utils.errors import ConfigError

ProgressCallback = Callable[[int, "int | None", str], None]
"""What library code calls: units done, units in total (None: unknown), and a short note."""

TERMINAL_INTERVAL = 0.2
"""Seconds between two redraws of a terminal line."""
LOG_INTERVAL = 10.0
"""Seconds between two lines of a log (a stream that is no terminal)."""
NOTEBOOK_INTERVAL = 0.5
"""Seconds between two updates of a notebook output."""


def ignore_progress(done: int, total: int | None, note: str) -> None:
    """A progress callable that shows nothing."""


def format_seconds(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`: 75 → "1:15"."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A progress display, to be used as a context manager.

    Args:
        title: what is being done, e.g. "Training".
        total: number of units, or None where nobody knows.
        unit: plural name of a unit, e.g. "steps".
        stream: where to write; None chooses the notebook's output where there is one, else standard error.
        clock: seconds from a monotonic clock; tests pass a fake one.
        view: where to draw instead, such as a widget.

    Example:
        >>> with Progress("Training", total=600, unit="steps") as progress:
        ...     progress.update(120, "loss 3.21")
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        view: View | None = None,
    ) -> None:
        self.title, self.total, self.unit = _one_line(title), total, unit
        self.done, self.note = 0, ""
        self._clock, self._start, self._base, self._closed = clock, clock(), 0, False
        self._counting_since = self._start
        self._view: View = view if view is not None else _usual_view(stream)
        self._last: float | None = None
        self._drawn: tuple[int, str] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("" if kind is None else f"stopped: {kind.__name__}")

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Take a report in the form of `ProgressCallback`."""
        if total is not None and self.total is None and self._last is not None:
            self._base, self._counting_since = done, self._clock()  # what came before was preparation
        self.total = total if total is not None else self.total
        self.update(done, note)

    def update(self, done: int, note: str = "") -> None:
        """Set the number of units done; draws only when the display's interval has passed."""
        if self._last is None:
            self._base = done  # what was done before this display opened tells nothing about the rate
        self.done, self.note = done, _one_line(note)
        now = self._clock()
        if not self._closed and (self._last is None or now - self._last >= self._view.interval):
            self._last, self._drawn = now, (self.done, self.note)
            self._view.draw(self.render(), self.fraction)

    def close(self, note: str = "") -> None:
        """Draw the last state and end the line. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.note = " · ".join(part for part in (self.note, _one_line(note)) if part)
        self._view.finish(self.render(), self.fraction, changed=(self.done, self.note) != self._drawn)

    @property
    def fraction(self) -> float | None:
        """Share that is done, 0 to 1; None where the total is unknown."""
        return min(self.done / self.total, 1.0) if self.total else None

    def render(self) -> str:
        """The state as one line of text."""
        count = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        parts = [f"{count} {self.unit}".strip(), self.note, self._times()]
        share = f"{self.fraction:4.0%} · " if self.fraction is not None else ""
        return f"{self.title}: {share}" + " · ".join(part for part in parts if part)

    def _times(self) -> str:
        now = self._clock()
        elapsed, text = now - self._counting_since, format_seconds(now - self._start)
        gained = self.done - self._base
        if not self._closed and self.total and gained > 0 and self.done < self.total:
            text += f", {format_seconds(elapsed / gained * (self.total - self.done))} left"
        return text


@contextlib.contextmanager
def showing(progress: bool | ProgressCallback, title: str, unit: str = "") -> Iterator[ProgressCallback]:
    """What library code reports to, from what a person passed as `progress=`.

    Args:
        progress: True opens a `Progress` and closes it at the end, False shows nothing, a callable is taken as it is.
        title: what is being done, for the display that True opens.
        unit: plural name of a unit, for the same.

    Raises:
        ConfigError: neither of these.
    """
    if progress is True:
        with Progress(title, unit=unit) as display:
            yield display
    elif progress is False:
        yield ignore_progress
    elif callable(progress):
        yield progress
    else:
        raise ConfigError(
            f"progress= takes True, False or a callable (done, total, note); got {type(progress).__name__}."
        )


class View:
    """Where a state is drawn, and how often. A widget is one, too."""

    interval = LOG_INTERVAL
    """Seconds between two drawings, at least."""

    def draw(self, line: str, fraction: float | None) -> None:
        """Draw a state: one line of raw text, and the share that is done, None where nobody knows."""
        raise NotImplementedError

    def finish(self, line: str, fraction: float | None, changed: bool) -> None:
        """Draw the last state; `changed` says whether it differs from what was drawn before."""
        self.draw(line, fraction)


def _usual_view(stream: TextIO | None) -> View:
    return _NotebookView() if stream is None and in_notebook() else _StreamView(stream or sys.stderr)


class _StreamView(View):
    """One rewritten line in a terminal; whole lines, rarely, everywhere else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = bool(getattr(stream, "isatty", lambda: False)())
        self.interval = TERMINAL_INTERVAL if self._terminal else LOG_INTERVAL
        self._width = 0

    def draw(self, line: str, fraction: float | None) -> None:
        if not self._terminal:
            self._write(line + "\n")
            return
        line = line[: max(shutil.get_terminal_size().columns - 1, 20)]
        self._write("\r" + line.ljust(self._width))  # blanks wipe what a longer line left
        self._width = len(line)

    def finish(self, line: str, fraction: float | None, changed: bool) -> None:
        if changed or self._terminal:  # a log needs no line twice
            self.draw(line, fraction)
        if self._terminal:
            self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class _NotebookView(View):
    """One output cell that is updated in place."""

    interval = NOTEBOOK_INTERVAL

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, line: str, fraction: float | None) -> None:
        from IPython.display import display

        state = _Snapshot(line, fraction)
        if self._handle is None:
            self._handle = display(state, display_id=True)
        else:
            self._handle.update(state)


class _Snapshot:
    """One state with its two views; text from outside is escaped."""

    def __init__(self, line: str, fraction: float | None) -> None:
        self.line, self.fraction = line, fraction

    def __repr__(self) -> str:
        return self.line

    def _repr_html_(self) -> str:
        bar = "" if self.fraction is None else f'<progress value="{self.fraction:.4f}" max="1"></progress> '
        return f'<div class="tb-progress">{bar}<code>{html.escape(self.line)}</code></div>'


def in_notebook() -> bool:
    """Whether an IPython kernel runs this process (IPython alone, in a terminal, is no notebook)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def _one_line(text: str) -> str:
    """Text without control characters, so that a note can neither break the line nor move the cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
