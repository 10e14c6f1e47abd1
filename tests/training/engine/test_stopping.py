"""A training in a thread of its own stops at a step, saves it, and goes on from there to the same end."""

from __future__ import annotations

import threading

import pytest

from tests.training.engine.resume_runs import BLOCKS, VALIDATION, trainer
from utils.errors import TrainingStopped
from utils.training.engine.hooks import TrainingHooks


class AskingAt(TrainingHooks):
    def __init__(self, stop: threading.Event, step: int) -> None:
        self.stop, self.step = stop, step
        self.ready = None

    def on_model_ready(self, model, tokenizer) -> None:
        self.ready = model

    def on_step_end(self, step, loss) -> None:
        if step == self.step:
            self.stop.set()


def listening(workspace, stop=None, hooks=None):
    """The trainer of the resume tests, with a stop request and hooks."""
    found = trainer(workspace, val_every_n_steps=3)
    found.stop = None if stop is None else stop.is_set
    if hooks is not None:
        found.hooks = hooks
    return found


def in_a_thread(train):
    """What a call gave or raised in a thread that is not the main one."""
    found = {}

    def call() -> None:
        try:
            found["result"] = train()
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            found["error"] = error

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(50)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return listening(tmp_path_factory.mktemp("whole")).train(BLOCKS, VALIDATION)


@pytest.mark.parametrize("step", [2, 3])  # a validation follows the other one
def test_a_stop_saves_the_step_and_the_same_call_goes_on(tmp_path, whole, step):
    stop = threading.Event()
    hooks = AskingAt(stop, step)
    stopped = listening(tmp_path / "cut", stop=stop, hooks=hooks)
    error = in_a_thread(lambda: stopped.train(BLOCKS, VALIDATION))["error"]
    assert isinstance(error, TrainingStopped) and f"step {step}" in str(error)
    assert hooks.ready is stopped.adapted
    going_on = in_a_thread(lambda: listening(tmp_path / "cut", stop=threading.Event()).train(BLOCKS, VALIDATION))[
        "result"
    ]
    assert going_on["resumed_from_step"] == step
    assert going_on["step_loss_history"] == whole["step_loss_history"]


def test_a_stop_at_the_last_step_is_the_end(tmp_path, whole):
    stop = threading.Event()
    total = len(whole["step_loss_history"])
    result = listening(tmp_path / "cut", stop=stop, hooks=AskingAt(stop, total)).train(BLOCKS, VALIDATION)
    assert (result.run_folder / "manifest.json").is_file()
