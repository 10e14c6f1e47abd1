"""A run that is stopped and resumed equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import functools
import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.engine import resume_table
from tests.training.engine.resume_runs import BLOCKS, VALIDATION, StopError, StoppingTrainer, outcome, trainer
from utils.errors import TrainingError
from utils.training.engine import random_state
from utils.training.engine.checkpoint import CheckpointStore

STEPS = 12
SCHEDULES = {
    "at the end of epochs": {},
    "every 2 steps": {"val_every_n_steps": 2},
    "never": None,
    "cut by max_steps": {"max_steps": 8, "val_every_n_steps": 3},
    "across epochs": {"val_every_n_steps": 5},
}


def scheduled(workspace: Path, schedule: str, stops: tuple[int, ...] = (), **changes):
    """The outcome under one of the schedules above."""
    validation = None if SCHEDULES[schedule] is None else VALIDATION
    return outcome(workspace, stops, validation, **{"epochs": 2, **(SCHEDULES[schedule] or {}), **changes})


@functools.cache
def uninterrupted(workspace: Path, schedule: str):
    return scheduled(workspace / schedule, schedule)[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("uninterrupted")


STOPS = {
    "at the end of epochs": range(1, STEPS),
    "every 2 steps": range(1, STEPS),
    "never": (2, 6, 11),
    "cut by max_steps": (1, 3, 5, 6, 7),
    "across epochs": (4, 5, 6, 9, 10),
}


DEFAULT = {"at the end of epochs": (1, 6, 7), "every 2 steps": (6,), "never": (6,), "across epochs": (10,)}
"""Those that the default run takes; the others are slow together."""


@pytest.mark.parametrize(
    ("schedule", "stop"),
    [
        pytest.param(name, stop, marks=() if stop in DEFAULT.get(name, ()) else pytest.mark.slow)
        for name, stops in STOPS.items()
        for stop in stops
    ],
)
def test_a_run_stopped_after_any_step_resumes_exactly(tmp_path, base, schedule, stop):
    result, got = scheduled(tmp_path, schedule, (stop,))
    assert result["resumed_from_step"] == stop
    expected = uninterrupted(base, schedule)
    for name in expected:
        assert got[name] == expected[name], name
    assert len(set(got["losses"])) == len(got["losses"])  # equal losses would hide a wrong order


@pytest.mark.parametrize(
    ("every", "stops", "resumed"), [(3, (5, 8), 6), pytest.param(4, (5, 9), 8, marks=pytest.mark.slow)]
)
def test_steps_since_the_last_save_are_repeated_exactly(tmp_path, base, every, stops, resumed):
    result, got = scheduled(tmp_path, "every 2 steps", stops, save_every_n_steps=every)
    assert result["resumed_from_step"] == resumed
    assert got == uninterrupted(base, "every 2 steps")


@pytest.mark.slow
def test_a_chain_of_stops_resumes_exactly(tmp_path, base):
    _, got = scheduled(tmp_path, "at the end of epochs", tuple(range(1, STEPS)))
    assert got == uninterrupted(base, "at the end of epochs")


def test_a_finished_run_is_returned_as_it_was(tmp_path, base):
    _, expected = scheduled(tmp_path, "cut by max_steps")
    again, got = scheduled(tmp_path, "cut by max_steps")
    assert got == expected
    assert again["resumed_from_step"] == 8


@pytest.mark.parametrize(
    "damage",
    ["flip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cut", "no manifest", "torn manifest"))],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, base, damage):
    run = trainer(tmp_path, epochs=2)
    run.stop_before = 4
    with pytest.raises(StopError):
        run.train(BLOCKS, VALIDATION)
    newest = sorted((tmp_path / "r" / "checkpoints").glob("*.ckpt"))[-1]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    manifest = newest.with_suffix(".json")
    {
        "flip": lambda: newest.write_bytes(raw),
        "cut": lambda: newest.write_bytes(raw[:-100]),
        "no manifest": manifest.unlink,
        "torn manifest": lambda: manifest.write_text(manifest.read_text()[:40]),
    }[damage]()
    result, got = scheduled(tmp_path, "at the end of epochs")
    assert result["resumed_from_step"] == 3
    assert got == uninterrupted(base, "at the end of epochs")


def test_random_states_come_back_as_they_were():
    def draw():
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)]  # noqa: NPY002

    random.gauss(0, 1)  # keeps a second value for the next call, which is part of the state
    state = random_state.capture()
    drawn = draw()
    random_state.restore(state)
    assert draw() == drawn


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tmp_path_factory.mktemp("table")


PARTS = {
    "every step, 0 workers": lambda folder: resume_table.every_step(folder, 0, range(5, 18, 8)),
    "every step, 2 workers": lambda folder: resume_table.every_step(folder, 2, range(9, 10)),
    "lost machines": lambda folder: resume_table.lost_machines(folder, range(7, 8)),
    "signals": lambda folder: resume_table.signals(folder, range(5, 6)),
}
"""What the default run takes of the table."""


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_a_part_of_the_table_of_interrupted_runs_is_equal(table, part):
    row = part(table)
    assert row.equal == row.runs > 0, row.note


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(resume_table.ROWS)))
def test_every_run_of_the_table_is_equal(table, number):
    row = resume_table.ROWS[number](table)
    assert row.equal == row.runs > 0, row.note


def test_the_end_of_a_run_is_not_held_up_by_a_signal_that_came_late(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background of a shell ignores it
    run = trainer(tmp_path, max_steps=2)
    run.stop_before, run.act = 1, functools.partial(signal.raise_signal, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.train(BLOCKS, VALIDATION)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, _ = outcome(tmp_path, max_steps=2)
    assert again["resumed_from_step"] == 2 and len(again["step_loss_history"]) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_never_replace_the_last_finite_generation(tmp_path, value, caplog):
    class Spoilt(StoppingTrainer):
        def _setup_module(self, adapted, plan):
            lit = super()._setup_module(adapted, plan)
            real = lit._loss_of
            lit._loss_of = lambda batch: real(batch) * (value if lit.trainer.global_step >= 4 else 1.0)
            return lit

    run = trainer(tmp_path, epochs=2)
    run.__class__ = Spoilt
    with pytest.raises(TrainingError, match="not finite"):
        run.train(BLOCKS, VALIDATION)
    store = CheckpointStore(
        tmp_path / "r" / "checkpoints", json.loads((tmp_path / "r" / "run.json").read_text())["run_id"]
    )
    newest = store.newest()
    assert newest.step == 4 and "no checkpoint at step 5" in caplog.text
    weights = store.load(store.folder / newest.file)["state_dict"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
