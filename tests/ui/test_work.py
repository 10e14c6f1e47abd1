from __future__ import annotations

import threading

import pytest
import torch

from utils.errors import DataError
from utils.testing import FakeClock
from utils.ui.work import Outcome, StopRequested, Ticket, Worker, attempt, readable

WAYS = pytest.mark.parametrize("in_thread", [True, False], ids=["thread", "main thread"])


def _fail(error, cause=None):
    def job(ticket):
        raise error from cause

    return job


@WAYS
def test_work_gives_its_value_where_it_should(in_thread):
    worker, ended = Worker(in_thread), []
    place = []
    assert worker.start(lambda ticket: place.append(threading.current_thread()) or 7, done=ended.append)
    assert worker.join(10)
    assert ended == [Outcome(7)]
    assert ended[0].done
    assert (place[0] is threading.main_thread()) is not in_thread


@WAYS
@pytest.mark.parametrize(
    ("job", "error", "stopped"),
    [
        (_fail(DataError("The file is empty.")), "The file is empty.", False),
        (_fail(KeyError("x"), OSError("disk")), "KeyError: 'x' (caused by OSError: disk)", False),
        (_fail(KeyboardInterrupt()), "", True),
    ],
)
def test_every_end_is_told(in_thread, job, error, stopped):
    worker, ended = Worker(in_thread), []
    worker.start(job, done=ended.append)
    worker.join(10)
    assert [(outcome.error, outcome.stopped, outcome.done) for outcome in ended] == [(error, stopped, False)]
    assert not worker.busy


def test_only_one_piece_of_work_at_a_time_and_a_stop_reaches_it():
    worker, begun, ended = Worker(in_thread=True), threading.Event(), []

    def endless(ticket):
        while True:
            begun.set()
            ticket.progress(1)

    assert worker.start(endless, done=ended.append)
    assert begun.wait(10)
    assert worker.busy
    assert not worker.start(lambda ticket: 1)
    worker.stop()
    assert worker.join(10)
    assert ended == [Outcome(stopped=True)]
    assert worker.start(lambda ticket: 2, done=ended.append)
    assert worker.join(10)
    assert ended[-1].value == 2


def test_the_worker_is_free_when_the_end_is_told():
    worker, seen = Worker(in_thread=False), []
    worker.start(lambda ticket: 1, done=lambda outcome: seen.append(worker.busy))
    assert seen == [False]


def test_a_cell_waits_for_the_work_that_is_going_on():
    worker, go, order = Worker(in_thread=True), threading.Event(), []
    worker.start(lambda ticket: go.wait(10) and order.append("first"))
    threading.Timer(0.05, go.set).start()
    outcome = worker.run(lambda ticket: order.append("second") or 5)
    assert outcome.value == 5
    assert order == ["first", "second"]


def test_progress_is_thinned_out_and_its_end_is_shown():
    clock, shown = FakeClock(), []
    ticket = Ticket(lambda *told: shown.append(told), clock)
    for done in range(11):
        clock.sleep(0.0625)  # exact in binary
        ticket.progress(done, 10, "note")
    assert [done for done, _, _ in shown] == [0, 4, 8, 10]


def test_progress_ends_work_that_was_asked_to_stop_and_report_does_not():
    ticket = Ticket()
    ticket.stop()
    ticket.report(1)
    assert ticket.stopping
    with pytest.raises(StopRequested):
        ticket.progress(1)


def test_an_exception_is_kept_for_cells():
    error = DataError("x")
    assert attempt(_fail(error), Ticket()).cause is error


def test_an_exception_without_a_text_is_named():
    assert readable(MemoryError()) == "MemoryError"


def test_a_note_before_something_long_is_shown_at_once():
    shown = []
    ticket = Ticket(lambda *told: shown.append(told), FakeClock())
    for place in range(3):
        ticket.progress(place, 9, "step", at_once=place != 1)
    assert [done for done, _, _ in shown] == [0, 2]


@pytest.mark.parametrize(("cuda", "gpu", "held"), [("13.0", False, True), ("13.0", True, False), (None, False, False)])
def test_a_thread_that_ends_leaves_no_dangling_device_guard(monkeypatch, cuda, gpu, held):
    """Colab's CPU runtime: the thread that first uses fake tensors must not be the one that owns their device guard."""
    owners = []
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(
        torch._C, "_ensureCUDADeviceGuardSet", lambda: owners.append(threading.current_thread()), raising=False
    )
    worker = Worker(in_thread=True)
    worker.start(lambda ticket: None)
    assert worker.join(10)
    assert owners == [threading.current_thread()] * held
