"""Two processes learn what one does, and either goes on where the other stopped. Real processes with gloo, by torchrun."""

from __future__ import annotations

import pytest

from tests.training.engine.several_runs import launch, run
from utils.errors import ConfigError
from utils.tokenization.batch_order import Window
from utils.training.engine.processes import Processes
from utils.training.engine.several import check_enough

pytestmark = pytest.mark.slow  # a minute of trainings before the first test, most of it the start of processes

HUNDRED = {"max_steps": 100, "save_every_n_steps": None, "learning_rate": 3e-3}
EQUAL = {
    f"{data}-{accumulation}": {"data": data, "gradient_accumulation_steps": accumulation, "double": True, **HUNDRED}
    for data in ("blocks", "documents")
    for accumulation in (1, 2)
}
"""23 samples: the last window of an epoch has fewer batches, and its last batch fewer samples. In float64: two processes sum in
another order, and a loss of 5 in float32 is itself rounded to 5e-7."""

IN_SHARDS = {"strategy": "fsdp", "double": False}
SHARDED = {f"fsdp-{name}": {**EQUAL[name], **IN_SHARDS} for name in ("blocks-1", "documents-2")}
STACKED = {
    "fsdp-stack": {**EQUAL["documents-2"], **IN_SHARDS, "layers": 3},
    "fsdp-anew": {**EQUAL["blocks-2"], **IN_SHARDS, "layers": 3, "gradient_checkpointing": True},
}
IN_PARTS = {**SHARDED, **STACKED}

THREE_EPOCHS = {"batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 3, "val_every_n_steps": 4, "double": True}
STEPS = 18
"""6 an epoch; the last window of each has one batch of 2 and one of 1."""

STOPS = (3, 6, 8, 13)
"""Within an epoch, at the end of one, after a validation, and within the last one."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def one(workspace):
    """An undisturbed run of one process, and runs of one process that were stopped."""
    for step in STOPS:
        run(workspace / f"from-1-at-{step}", stop=step, **THREE_EPOCHS)
    run(workspace / "from-1-to-shards", stop=8, **THREE_EPOCHS)
    return run(workspace / "one", **THREE_EPOCHS)


@pytest.fixture(scope="module")
def two(workspace, one):
    """What two processes make of everything that the tests ask for: starting them takes longer than all of it."""
    stopped = {f"from-2-at-{step}": {"stop": step, **THREE_EPOCHS} for step in STOPS}
    continued = {f"on-2-at-{step}": {"workspace": f"from-1-at-{step}", **THREE_EPOCHS} for step in STOPS}
    sharded = {**THREE_EPOCHS, "strategy": "fsdp"}
    shards = {"on-shards": {**sharded, "workspace": "from-1-to-shards"}, "from-shards": {**sharded, "stop": 8}}
    return launch(workspace, {**EQUAL, **stopped, **continued, **IN_PARTS, **shards})


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_learn_what_one_does(name, two, workspace):
    alone, both = run(workspace / f"{name}-alone", **EQUAL[name]), two[name]
    assert len(both["losses"]) == 100
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-6, rel=0)
    assert [loss for _, loss in both["validations"]] == pytest.approx([x for _, x in alone["validations"]], abs=1e-6)
    assert both["norms"] == pytest.approx(alone["norms"], abs=1e-5)
    assert [both[key] for key in ("seen", "samples", "labels")] == [alone[key] for key in ("seen", "samples", "labels")]


@pytest.mark.parametrize("step", STOPS)
def test_one_process_goes_on_where_two_stopped(step, one, two, workspace):
    _goes_on(one, two[f"from-2-at-{step}"], run(workspace / f"from-2-at-{step}", **THREE_EPOCHS), step)


@pytest.mark.parametrize("step", STOPS)
def test_two_processes_go_on_where_one_stopped(step, one, two):
    later = two[f"on-2-at-{step}"]
    before = {
        "seen": {name: ids for name, ids in one["seen"].items() if int(name) <= step}
    }  # what one process had seen
    _goes_on(one, before, later, step)


@pytest.mark.parametrize("name", IN_PARTS)
def test_two_processes_with_shards_learn_what_one_does(name, two, workspace):
    alone, both = run(workspace / f"{name}-alone", **{**IN_PARTS[name], "strategy": "ddp"}), two[name]
    assert both["shards"] == (4 if name in STACKED else 1)  # the model, and each of its three blocks
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-5, rel=0)
    assert [loss for _, loss in both["validations"]] == pytest.approx([x for _, x in alone["validations"]], abs=1e-5)
    assert both["norms"] == pytest.approx(alone["norms"], abs=1e-5)  # over all shards
    assert both["seen"] == alone["seen"]


def test_one_process_goes_on_where_shards_stopped(one, two, workspace):
    _goes_on(one, two["from-shards"], run(workspace / "from-shards", **THREE_EPOCHS), 8)


def test_shards_go_on_where_one_process_stopped(one, two):
    _goes_on(one, {"seen": {name: ids for name, ids in one["seen"].items() if int(name) <= 8}}, two["on-shards"], 8)


def _goes_on(one, before, later, step):
    """No sample of any step is lost or doubled, and the losses are those of the undisturbed run."""
    assert sorted(map(int, before["seen"])) == list(range(1, step + 1))
    assert sorted(map(int, later["seen"])) == list(range(step + 1, STEPS + 1))
    assert {**before["seen"], **later["seen"]} == one["seen"]
    assert later["losses"] == pytest.approx(one["losses"], abs=1e-6, rel=0)
    assert [at for at, _ in later["validations"]] == [at for at, _ in one["validations"]]
    assert [x for _, x in later["validations"]] == pytest.approx([x for _, x in one["validations"]], abs=1e-6)
    assert (later["samples"], later["labels"]) == (one["samples"], one["labels"])


def test_after_kill_9_two_processes_go_on_with_the_same_bits(tmp_path):
    settings = {**THREE_EPOCHS, "dropout": 0.2}
    killed = launch(tmp_path, {"undisturbed": settings, "killed": {**settings, "stop": 8, "kill": True}})
    assert "killed" not in killed
    found = launch(tmp_path, {"on": {**settings, "workspace": "killed"}})["on"]
    assert sorted(map(int, found["seen"])) == list(range(9, STEPS + 1))
    assert found["losses"] == killed["undisturbed"]["losses"]
    assert found["validations"] == killed["undisturbed"]["validations"]


def test_a_step_of_fewer_samples_than_processes_is_refused():
    check_enough(Window(2, 2), Processes(0, 4))
    with pytest.raises(ConfigError, match=r"takes 3 samples .* fewer than the 4 processes .* start at most 3"):
        check_enough(Window(3, 1), Processes(0, 4))


def test_what_one_process_is_told_holds_for_all(tmp_path):
    found = launch(tmp_path, {"asked": {**THREE_EPOCHS, "ask_rank": 1, "ask_after": 5}})["asked"]
    assert found["stopped"] == ["TrainingStopped", "TrainingStopped"]
    rest = run(tmp_path / "asked", **THREE_EPOCHS)
    assert list(map(int, rest["seen"])) == list(range(6, STEPS + 1))


def test_weights_that_no_loss_depends_on_are_no_hindrance(tmp_path):
    settings = {**THREE_EPOCHS, "idle": True}
    found = launch(tmp_path, {"idle": settings})["idle"]
    assert found["losses"] == pytest.approx(run(tmp_path / "alone", **settings)["losses"], abs=2e-6)
