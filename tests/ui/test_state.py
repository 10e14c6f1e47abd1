from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field

import pytest

from tests.ui.hostile_strings import HOSTILE
from utils.errors import ConfigError
from utils.ui.state import FILE_NAME, WizardState


@dataclass
class Form:
    name: str = "a"
    rate: float = 0.5
    count: int = 3
    on: bool = False
    most: int | None = None
    rows: list[dict] = field(default_factory=list)


def test_a_form_begins_with_its_defaults_and_nothing_is_written(tmp_path):
    state = WizardState(tmp_path / "wizard")
    assert state.form("step", Form) == Form()
    assert (state.step, state.visited, state.lost) == (0, 0, "")
    assert not (tmp_path / "wizard").exists()


def test_another_process_finds_everything_again(tmp_path):
    state = WizardState(tmp_path)
    form = Form("b", 1, 7, True, 9, [{"x": 1}])
    state.keep("step", form)
    state.go(3)
    state.go(1)
    again = WizardState(tmp_path)
    assert again.form("step", Form) == form
    assert (again.step, again.visited) == (1, 3)


def test_hostile_text_comes_back_as_it_was(tmp_path):
    for place, text in enumerate(HOSTILE):
        WizardState(tmp_path).keep(f"step {place}", Form(name=text))
    again = WizardState(tmp_path)
    assert [again.form(f"step {place}", Form).name for place in range(len(HOSTILE))] == list(HOSTILE)


@pytest.mark.parametrize(
    ("kept", "read"),
    [
        ({"name": 1, "rate": "x", "count": 2.5, "on": 1, "most": "x", "rows": 3}, Form()),
        ({"count": True, "rate": 2, "most": None, "unknown": 1}, Form(rate=2)),
        ({"most": 4, "rows": [{"a": 1}], "on": True}, Form(most=4, rows=[{"a": 1}], on=True)),
    ],
)
def test_values_of_another_type_are_left_out(tmp_path, kept, read):
    content = {"format_version": 1, "step": 0, "visited": 0, "forms": {"step": kept}}
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    assert WizardState(tmp_path).form("step", Form) == read


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "forms": 3}'])
def test_a_file_that_cannot_be_used_is_said_and_not_fatal(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    state = WizardState(tmp_path)
    assert "begins with its defaults" in state.lost
    assert state.form("step", Form) == Form()
    state.keep("step", Form("new"))
    assert WizardState(tmp_path).form("step", Form).name == "new"


def test_a_secret_is_never_written(tmp_path):
    @dataclass
    class Secrets:
        text: str = ""
        api_key: str = ""

    state = WizardState(tmp_path)
    for form in (Secrets(text="hf_" + "a1B2" * 10), Secrets(api_key="short")):
        with pytest.raises(ConfigError, match=r"never holds a secret"):
            state.keep("step", form)
    assert not (tmp_path / FILE_NAME).exists()


def test_a_state_that_did_not_change_is_not_written_again(tmp_path):
    state = WizardState(tmp_path)
    state.keep("step", Form("b"))
    (tmp_path / FILE_NAME).unlink()
    state.keep("step", Form("b"))
    state.go(0)
    assert not (tmp_path / FILE_NAME).exists()


def test_a_disk_that_takes_nothing_is_said_and_stops_nobody(tmp_path, monkeypatch):
    state, told = WizardState(tmp_path), []
    state.watch(lambda: told.append(state.unsaved))

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("utils.ui.state.write_json", full)
        state.keep("step", Form("b"))
        state.go(2)
    assert len(told) == 1 and "No space left" in told[0] and FILE_NAME in told[0]
    assert state.form("step", Form) == Form("b") and state.step == 2
    state.go(3)
    assert state.unsaved == "" and told[1:] == [""]
    assert WizardState(tmp_path).form("step", Form) == Form("b")
