from __future__ import annotations

import signal
import threading

import pytest
import torch
from torch import nn

from utils.checks.limits import Limits, bounded, resident_bytes
from utils.errors import CheckError

LAYER = nn.Linear(2, 2)


def _for_ever():
    while True:
        pass


def _call_for_ever():
    while True:
        LAYER(torch.zeros(1, 2))


def test_an_endless_loop_in_the_main_thread_is_ended_and_the_alarm_is_off_again():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(CheckError, match=r"did not end within 0.2 s"), bounded(Limits(seconds=0.2)):
        _for_ever()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) is before


def test_in_another_thread_the_next_call_of_a_module_ends_it():
    caught = []

    def work():
        try:
            with bounded(Limits(seconds=0.1)):
                _call_for_ever()
        except CheckError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and "did not end within 0.1 s" in caught[0]


def test_memory_above_the_bound_is_ended():
    held = iter([100, 100 + 10**9, 100 + 3 * 10**9])
    with (
        pytest.raises(CheckError, match=r"took 3,000 MB of memory and may take 2,000 MB.*memory_limit_gb"),
        bounded(Limits(bytes=2e9), lambda: next(held)),
    ):
        _call_for_ever()  # the second call is refused


def test_an_alarm_that_somebody_set_is_left_alone():
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with bounded(Limits(seconds=50)):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_what_the_system_says_grows_with_a_large_tensor():
    before = resident_bytes()
    tensor = torch.ones(30_000_000)
    assert resident_bytes() - before > 0.8 * tensor.numel() * 4


@pytest.mark.parametrize("limits", [Limits(), Limits(seconds=60.0, bytes=1e12)], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("way_out", [SystemExit(3), GeneratorExit()], ids=["sys.exit", "another"])
def test_a_model_cannot_end_the_program(limits, way_out):
    with pytest.raises(CheckError, match=f"ended the program: {type(way_out).__name__}"), bounded(limits):
        raise way_out


def test_a_bound_longer_than_the_clock_can_hold_is_no_error():
    with bounded(Limits(seconds=1e300)):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 1e7


def test_an_interrupt_passes_through():
    with pytest.raises(KeyboardInterrupt), bounded(Limits()):
        raise KeyboardInterrupt
