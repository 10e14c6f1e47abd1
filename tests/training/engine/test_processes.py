"""What processes say to each other. The two of them are real, and talk through gloo."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch

from utils.errors import RAISED_ELSEWHERE, ConfigError, TrainingError
from utils.training.engine.processes import ALONE, Place, Processes

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Place()),
        ({"WORLD_SIZE": "2"}, Place()),
        (TORCHRUN, Place(3, 1, 4)),
        (SRUN, Place(5, 1, 8)),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Place()),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Place()),  # sbatch's own script, before srun
        ({**SRUN, **TORCHRUN}, Place(3, 1, 4)),
    ],
)
def test_a_launcher_says_the_place_of_a_process(variables, place):
    assert Place.here(variables) == place


def test_one_process_talks_to_nobody(monkeypatch):
    monkeypatch.setattr("utils.training.engine.processes.dist", None)
    one = torch.ones(2)
    assert Processes.here() == ALONE and ALONE.leads and not ALONE.several
    assert ALONE.lead(lambda: 3) == ALONE.together(lambda: 3) == ALONE.in_turn(lambda: 3) == 3
    assert ALONE.gather("a") == ["a"] and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.sum(one) is one and ALONE.highest([1, 2]) == [1, 2]
    ALONE.barrier()


def test_two_processes(tmp_path):
    from tests.training.engine.several_runs import torchrun

    done = torchrun([str(Path(__file__)), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    first, second = (pickle.loads((tmp_path / f"{rank}").read_bytes()) for rank in range(2))
    assert (first["lead"], second["lead"]) == (0, 0)
    assert (first["together"], second["together"]) == (0, 1)
    assert first["turns"] == second["turns"] == [0, 1]
    assert first["gather"] == second["gather"] == ["p0", "p1"]
    assert first["any"] is second["any"] is True and first["none"] is second["none"] is False
    assert first["highest"] == second["highest"] == [1, 9]
    assert first["sum"] == second["sum"] == [3.0]
    for found in (first, second):
        assert found["refused"] == ("ConfigError", "the first process says no", found["rank"] == 1)
        assert found["failed"] == ("ConfigError", "the second process says no", found["rank"] == 0)
    assert first["foreign"] == ("StrangeError", "1 and 2", False)
    assert second["foreign"] == ("TrainingError", "process 0 failed: StrangeError: 1 and 2", True)


class StrangeError(Exception):
    """Cannot be copied: pickle makes it anew from its message alone."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def _raised(action):
    try:
        action()
    except (ConfigError, TrainingError, StrangeError) as error:
        return type(error).__name__, str(error), getattr(error, RAISED_ELSEWHERE, False)
    raise AssertionError("nothing was raised")


def _refuse(error):
    raise error


def main(folder: Path) -> None:
    processes = Processes.here()
    rank = processes.rank
    turns = folder / "turns"

    def take_turn():
        with turns.open("a") as file:
            file.write(f"{rank}\n")

    def fail_in_second():
        if rank == 1:
            raise ConfigError("the second process says no")

    found = {
        "rank": rank,
        "lead": processes.lead(lambda: rank),
        "together": processes.together(lambda: rank),
        "gather": processes.gather(f"p{rank}"),
        "any": processes.any(rank == 1),
        "none": processes.any(False),
        "highest": processes.highest([1 - rank, 9 * rank]),
        "sum": processes.sum(torch.tensor([rank + 1.0])).tolist(),
        "refused": _raised(lambda: processes.lead(lambda: _refuse(ConfigError("the first process says no")))),
        "failed": _raised(lambda: processes.together(fail_in_second)),
        "foreign": _raised(lambda: processes.lead(lambda: _refuse(StrangeError(1, 2)))),
    }
    processes.in_turn(take_turn)
    processes.barrier()
    found["turns"] = [int(line) for line in turns.read_text().split()]
    (folder / f"{rank}").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
