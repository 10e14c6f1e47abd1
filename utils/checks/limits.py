"""Bounds of time and memory for a block that runs a stranger's model. Knows nothing about checks.

Time is looked at whenever a module is called, in any thread, and by the system's alarm clock in the main thread, which
also ends a loop that calls no module. Memory is looked at whenever a module is called: what one call takes at once is not
seen before it is over. A model that does neither (one endless call of a library, in a thread) needs a child process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import psutil
from torch.nn.modules.module import register_module_forward_pre_hook

from utils.errors import CheckError

MB = 1e6
LONGEST = 1e8
"""Seconds (three years) that the alarm clock is set to at most: it holds no number of more than 9.2e9."""
RING_AGAIN = 1.0
"""Seconds until the alarm rings again, where a stranger's bare `except:` swallowed the first."""


@dataclass(frozen=True)
class Limits:
    """What a block may take.

    Attributes:
        seconds: of the clock on the wall; None: no bound.
        bytes: how far the memory of the process may rise above that at the start; None: no bound.
    """

    seconds: float | None = None
    bytes: float | None = None


_LEAVING = (__file__, contextlib.__file__)
"""Files of the functions that run while a block is entered or left."""


class _Passed(BaseException):
    """A bound was passed. No `Exception`: who tries ways to call a model, and catches what each raises, must not catch it."""


@contextlib.contextmanager
def bounded(limits: Limits, resident: Callable[[], int] | None = None) -> Iterator[None]:
    """Within the block, raise `CheckError` as soon as a bound is passed, and where a stranger's code would end the program.

    Args:
        limits: the bounds.
        resident: bytes that the process holds in memory now; None asks the system.
    """
    with _no_way_out(), _watched(limits, resident or resident_bytes):
        yield


@contextlib.contextmanager
def _no_way_out() -> Iterator[None]:
    """`sys.exit` in a model, or another exception that nobody catches, ends the block and not the notebook."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise CheckError(
            f"The model would have ended the program: {type(error).__name__}: {error}. Let forward raise an Exception "
            "(ValueError, RuntimeError) where it cannot go on."
        ) from error


@contextlib.contextmanager
def _watched(limits: Limits, held: Callable[[], int]) -> Iterator[None]:
    """Looks at time and memory within the block, where they are bounded."""
    if limits.seconds is None and limits.bytes is None:
        yield
        return
    ends = None if limits.seconds is None else time.monotonic() + limits.seconds
    start = held() if limits.bytes is not None else 0

    def look(*_: Any) -> None:
        if ends is not None and time.monotonic() > ends:
            raise _Passed(_too_slow(limits))
        if limits.bytes is not None and (taken := held() - start) > limits.bytes:
            raise _Passed(
                f"It took {taken / MB:,.0f} MB of memory and may take {limits.bytes / MB:,.0f} MB. Check a smaller version of "
                "the model, or allow more: validate(…, memory_limit_gb=…)."
            )

    hook = register_module_forward_pre_hook(look)
    try:
        with _alarm(limits):
            yield
    except _Passed as passed:
        raise CheckError(str(passed)) from None
    finally:
        hook.remove()


def _too_slow(limits: Limits) -> str:
    """What is said when the time is over."""
    return (
        f"It did not end within {limits.seconds:g} s. Look for a loop that does not end, check a smaller version of the model, "
        "or allow more time: validate(…, seconds_per_check=…)."
    )


def resident_bytes() -> int:
    """Bytes that this process holds in memory."""
    return int(_this_process(os.getpid()).memory_info().rss)


def available_memory() -> int:
    """Bytes of memory that this machine can still give to a program."""
    return int(psutil.virtual_memory().available)


@functools.cache
def _this_process(number: int) -> psutil.Process:
    """Found once: looking it up takes longer than asking it. By its number, since a fork is another process."""
    return psutil.Process(number)


@contextlib.contextmanager
def _alarm(limits: Limits) -> Iterator[None]:
    """The alarm clock, where there is one and nobody else has set it."""
    usable = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if limits.seconds is None or not usable or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename in _LEAVING:
            return  # the block is being left, where nobody would catch it; it rings again should that not be so
        raise _Passed(_too_slow(limits))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(limits.seconds, LONGEST), RING_AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
