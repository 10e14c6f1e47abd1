"""`torchrun … -m utils train`: one run, one voice, and a result that one process takes further."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import utils
from tests.training.engine.several_runs import torchrun
from utils.training.recovery import recover

EXAMPLE = Path(utils.__file__).parent / "examples" / "broken_export"
TEXT = "".join(f"{n} green bottles hang on wall number {n % 7}, and one falls down.\n" for n in range(160))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line, without the number of steps, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "notes.txt").write_text(TEXT)
    words = ["-m", "utils", "train", str(EXAMPLE), "--data", str(folder / "notes.txt"), "--workspace", str(folder)]
    words += [*("--strategy", "ddp", "--devices", "2", "--batch-size", "3", "--max-length", "16", "--run-name", "r")]
    return words, folder


def test_torchrun_trains_the_bundled_example(command):
    words, folder = command
    done = torchrun([*words, "--max-steps", "3"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training loss") == 1 and "after 3 steps" in done.stdout
    assert done.stderr.count("statements completed") == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(set(warnings)) == len(warnings)
    assert [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")] == ["r"]
    assert json.loads((folder / "r" / "manifest.json").read_text())["steps"] == 3

    result = recover(folder / "r")
    assert len(result["step_loss_history"]) == 3 and result["accumulation"].samples == 9


def test_what_the_leading_process_refuses_ends_all_and_is_said_once(command):
    words, folder = command
    (folder / "r").mkdir(exist_ok=True)
    (folder / "r" / "somebody's").touch()
    (folder / "r" / "run.json").unlink(missing_ok=True)
    refused = torchrun([*words, "--max-steps", "3"])
    assert refused.returncode != 0
    assert refused.stderr.count("error: ") == 1 and refused.stderr.count("exists and is no run of this package") == 1
