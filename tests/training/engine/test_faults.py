"""Parts of the table of faults in the default run; all of it is slow. A store's own cases are in `test_checkpoint`."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from unittest import mock

import pytest

from tests.training.engine import fault_table
from tests.training.engine.boundaries import Boundaries, full
from tests.training.engine.faults import Run, strangers
from tests.training.engine.resume_runs import BLOCKS, VALIDATION, trainer
from utils.training.engine.checkpoint import CheckpointStore

PARTS = {
    "bit flips": lambda folder: fault_table.damaged_locally(folder, "bit flips", 200),
    "truncations": lambda folder: fault_table.damaged_locally(folder, "truncations", 50),
    "mirror": lambda folder: fault_table.damaged_on_the_mirror(folder, "bit flips", 20),
    "killed saves": lambda folder: fault_table.kills_inside_a_save(folder),
    "histories": lambda folder: fault_table.histories(folder, 3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_a_part_of_the_table_of_faults_is_right(folder, part):
    row = part(folder)
    assert row.equal == row.runs > 0, row.note


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(fault_table.ROWS)))
def test_every_case_of_the_table_is_right(folder, number):
    row = fault_table.ROWS[number](folder)
    if "may not mount" in row.note:
        pytest.skip("a tmpfs needs root")
    assert row.equal == row.runs > 0, row.note


def test_a_full_disk_costs_the_oldest_generation_but_never_the_best_or_the_newest(tmp_path):
    run = Run(tmp_path, keep=4)
    for step, loss in [(1, 0.5), (2, 2.0), (3, 2.0), (4, 2.0)]:
        run.save(step, loss)
    dropped = []
    while (item := run.store.make_room()) is not None:
        dropped.append(item.step)
    assert dropped == [2, 3]
    assert [item.step for item in run.store.generations()] == [4, 1] and not strangers(run.store.folder)


def test_a_damaged_newest_one_keeps_the_last_good_one_on_a_full_disk(tmp_path):
    run = Run(tmp_path, keep=4)
    for step in (1, 2, 3):
        run.save(step)
    newest = run.store.folder / run.store.newest().file
    newest.write_bytes(newest.read_bytes()[:-1])
    dropped = []
    while (item := run.store.make_room()) is not None:
        dropped.append(item.step)
    assert run.store.newest().step == 2 and 2 not in dropped


def test_training_goes_on_where_no_checkpoint_can_be_written_and_says_so(tmp_path, caplog):
    real, calls = CheckpointStore.write, []

    def write(self, state, path):
        calls.append(path)
        if len(calls) in (3, 4, 5):
            raise OSError(errno.EIO, "Input/output error")
        real(self, state, path)

    with mock.patch.object(CheckpointStore, "write", write):
        result = trainer(tmp_path, max_steps=8).train(BLOCKS, VALIDATION)
    assert len(result["step_loss_history"]) == 8
    assert caplog.text.count("no checkpoint at step 3") == 1 and "that of step 2" in caplog.text
    assert "no checkpoint at step 4" not in caplog.text and "step 6 is saved" in caplog.text
    assert (Path(result["run_folder"]) / "manifest.json").exists()


@pytest.mark.parametrize("at", range(1, 12, 3))
def test_a_run_that_died_while_it_began_is_begun_again(tmp_path, at):
    from utils.training.run_folder import open_run

    print_of = {"model": {}, "data": "d", "settings": {}, "total_steps": 1}
    with pytest.raises(OSError, match="No space"), Boundaries(at, full).watch():
        open_run(tmp_path, "r", print_of, "auto")
    (tmp_path / "r").mkdir(exist_ok=True)
    (tmp_path / "r" / ".run.json.abc.tmp").write_text("{")
    run = open_run(tmp_path, "r", print_of, "auto")
    run.leave()
    assert json.loads((run.path / "run.json").read_text())["run_id"] == run.run_id
    assert {path.name for path in run.path.iterdir()} == {"run.json", ".lock"}
