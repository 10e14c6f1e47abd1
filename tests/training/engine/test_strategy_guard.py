"""Strategies that cannot work where the process runs: refused, with the reason and the command line that can."""

from __future__ import annotations

import shlex

import pytest

from utils.__main__ import main
from utils.errors import TrainingError
from utils.training.engine.strategy_guard import Surroundings, check_strategy, command, refusal
from utils.training.training_config import TrainingConfig

NOTEBOOK = Surroundings(in_notebook=True, devices=2)
SCRIPT = Surroundings(devices=2)
LAUNCHED = Surroundings(devices=2, launched=2)
ON_CPU = Surroundings(launched=2, on_cpu=True)
LINE = "torchrun --nproc_per_node={n} -m utils train"

TABLE = [  # strategy, devices, surroundings, words of the refusal; None: it works
    ("auto", 1, NOTEBOOK, None),
    ("auto", 1, SCRIPT, None),
    ("auto", 1, Surroundings(in_notebook=True, cuda_initialised=True), None),
    ("auto", 1, LAUNCHED, "each of them would train the whole model alone"),
    ("auto", 2, NOTEBOOK, "a notebook is one process"),
    ("ddp", 2, NOTEBOOK, "ddp starts the running script again"),
    ("ddp", 1, NOTEBOOK, "ddp starts the running script again"),
    ("fsdp", 2, NOTEBOOK, "fsdp starts the running script again"),
    ("deepspeed", 2, NOTEBOOK, "deepspeed starts the running script again"),
    ("ddp_spawn", 2, NOTEBOOK, "do not know what the cells of a notebook define"),
    ("dp", 2, NOTEBOOK, "Lightning has given it up"),
    ("ddp_notebook", 2, NOTEBOOK, "a notebook is one process"),
    ("ddp_notebook", 2, Surroundings(in_notebook=True, cuda_initialised=True, devices=2), "CUDA does not survive a fork"),
    ("ddp", 2, SCRIPT, "nobody started the other processes"),
    ("ddp", 2, LAUNCHED, None),
    ("fsdp", 2, LAUNCHED, None),
    ("ddp", 4, LAUNCHED, "this machine has 2 devices"),
    ("ddp", 2, Surroundings(launched=2), "this machine has one device"),
    ("ddp", 2, ON_CPU, None),
    ("ddp", 2, Surroundings(on_cpu=True), "nobody started the other processes"),
    ("ddp", 2, Surroundings(devices=2, launched=4), None),
    ("ddp", 2, Surroundings(devices=2, launched=3), "3 processes were started, which is no multiple of devices"),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "devices", "where", "words"), TABLE)
def test_what_cannot_work_is_refused_with_what_can(strategy, devices, where, words):
    refused = refusal(strategy, devices, where)
    assert (refused is None) == (words is None), refused
    if refused is not None:
        assert words in refused and LINE.format(n=max(devices, 2)) in refused
        assert f"strategy={strategy!r}" in refused and "strategy='auto', devices=1" in refused


def test_the_check_raises_and_the_defaults_pass():
    check_strategy(TrainingConfig())
    with pytest.raises(TrainingError, match="ddp starts the running script again"):
        check_strategy(TrainingConfig(strategy="ddp", devices=2), NOTEBOOK)


def test_facts_are_looked_up(monkeypatch):
    monkeypatch.setattr("utils.training.engine.strategy_guard.in_notebook", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    here = Surroundings.here()
    assert here.in_notebook and here.launched == 2 and here.devices >= 1
    monkeypatch.delenv("WORLD_SIZE")
    assert Surroundings.here().launched == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed", "ddp_spawn"])
def test_the_command_line_is_one_that_there_is(strategy, tmp_path, capsys):
    file = TrainingConfig(notes="from the file").save(tmp_path / "run.json")
    _, _, *words = shlex.split(command(strategy, 2, str(file)))
    assert words[:2] == ["-m", "utils"]
    assert main([*words[2:], "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert '"devices": 2' in printed and '"notes": "from the file"' in printed
