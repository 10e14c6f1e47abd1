from __future__ import annotations

import signal
import threading
import zipfile

import pytest

from tests.ui.small_setup import LINES, small_setup
from utils.errors import ConfigError
from utils.ui.decisions.results import FORMATS
from utils.ui.decisions.sample_hooks import SampleHooks
from utils.ui.work import StopRequested, Ticket, Worker

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def begin(tmp_path, tokenizer):
    """The decisions of a new kernel over the same folder; other weights each time, as a model that is built anew has."""
    seeds = iter(range(100))

    def made(**changes):
        setup = small_setup(tmp_path, tokenizer, seed=next(seeds), **changes)
        if not setup.training.form.changes:
            for name, value in {"batch_size": 4, "max_steps": 12, "val_every_n_steps": 6}.items():
                setup.training.change(name, value)
        return setup

    return made


@pytest.fixture
def at_step(monkeypatch):
    """Do something, once, when an optimizer step is done."""

    def arrange(wanted, act):
        monkeypatch.setattr(SampleHooks, "on_step_end", lambda self, step, loss: act() if step == wanted else None)

    return arrange


@pytest.fixture
def stop_at(at_step):
    def stop(setup, step):
        ticket = Ticket()
        at_step(step, ticket.stop)
        with pytest.raises(StopRequested, match="saved"):
            setup.results.train(ticket)

    return stop


def test_nobody_clicking_trains_and_finds_the_result(begin):
    setup = begin()
    result = setup.results.train(Ticket())
    assert len(result["step_loss_history"]) == 12 and setup.results.finished and not setup.results.changed
    assert setup.results.form.name == result["run_name"]
    assert setup.results.live.samples[0].step == 0 and setup.results.live.samples[-1].step == 12
    assert setup.results.live.picture is not None
    assert setup.results.train(Ticket()) is result  # nothing is trained twice


def test_stop_then_continue_in_a_new_kernel_ends_like_an_undisturbed_run(begin, stop_at, tmp_path):
    first = begin()
    stop_at(first, 5)
    assert first.results.interrupted and not first.results.finished
    second = begin()
    assert second.results.interrupted and not second.results.changed
    result = second.results.train(Ticket())
    assert result["resumed_from_step"] == 5 and result["run_name"] == first.results.form.name
    whole = small_setup(tmp_path / "whole", first.tokenizer.made, seed=0)
    for name, value in first.training.form.changes.items():
        whole.training.change(name, value)
    assert whole.results.train(Ticket())["step_loss_history"] == result["step_loss_history"]


def test_a_finished_run_is_found_again_by_a_new_kernel(begin):
    trained = begin().results.train(Ticket())
    setup = begin()
    assert setup.results.result is None and setup.results.finished
    found = setup.results.train(Ticket())
    assert found["step_loss_history"] == trained["step_loss_history"]
    assert found.model is setup.training.adapted


@pytest.mark.slow  # three trainings
def test_other_settings_begin_another_run_with_fresh_weights(begin):
    setup = begin()
    first = setup.results.train(Ticket())
    setup.training.change("batch_size", 3)
    assert setup.results.changed
    second = setup.results.train(Ticket())
    assert second["run_name"] != first["run_name"]
    setup.training.change("batch_size", 4)
    third = setup.results.train(Ticket(), anew=True)
    assert third["step_loss_history"] == first["step_loss_history"]  # the same start, whatever was trained between


def test_what_is_changed_while_a_run_gets_ready_belongs_to_the_next_one(begin):
    setup = begin()

    def meanwhile(part):
        if "getting ready" in setup.results.live.line and setup.training.form.changes["batch_size"] == 4:
            setup.training.change("batch_size", 3)

    setup.results.live.watch(meanwhile)
    setup.results.train(Ticket())
    assert setup.training.config().batch_size == 3 and setup.results.changed


def test_other_data_is_another_run(begin):
    first = begin().results
    first._keep(name="run", subject=first.subject())
    assert not begin().results.changed
    assert begin(texts=LINES[:80]).results.changed


def test_an_interrupt_of_the_cell_is_a_clean_stop(begin, at_step):
    """In Colab the training runs in the main thread, and the interrupt button is what stops it."""
    setup = begin()
    at_step(5, lambda: signal.raise_signal(signal.SIGINT))
    assert threading.current_thread() is threading.main_thread()
    outcome = Worker(in_thread=False).run(setup.results.train)
    assert outcome.stopped and setup.results.interrupted
    assert begin().results.train(Ticket())["resumed_from_step"] == 5


def test_settings_that_do_not_hold_are_told_before_anything_begins(begin):
    setup = begin()
    setup.training.change("learning_rate", -1.0)
    setup.training.change("epochs", 0)
    with pytest.raises(ConfigError, match=r"step 4(.|\n)*learning_rate(.|\n)*epochs"):
        setup.results.train(Ticket())
    assert setup.results.folder is None


def test_the_export_is_proven_and_packed(begin):
    setup = begin()
    with pytest.raises(ConfigError, match="train first"):
        setup.results.export(Ticket())
    setup.results.train(Ticket())
    assert setup.results.form.formats == list(FORMATS)
    setup.results.choose_formats([])
    with pytest.raises(ConfigError, match="at least one format"):
        setup.results.export(Ticket())
    setup.results.choose_formats(["safetensors"])
    path = setup.results.pack(Ticket())
    assert setup.results.bundle is not None and setup.results.bundle.parity.passed
    assert "model.safetensors" in zipfile.ZipFile(path).namelist()
    assert begin().results.form.formats == ["safetensors"]


def test_a_new_run_after_a_restart_begins_with_fresh_weights(begin):
    """Reading the finished run puts its weights into the model; the next run must not start from them."""
    begin().results.train(Ticket())
    setup = begin()
    untrained = {name: value.clone() for name, value in setup.training.adapted.state_dict().items()}
    setup.results.reopen()
    trained = setup.training.adapted.state_dict()
    assert any(not trained[name].equal(value) for name, value in untrained.items())
    setup.results._fresh_weights()
    assert all(trained[name].equal(value) for name, value in untrained.items())
