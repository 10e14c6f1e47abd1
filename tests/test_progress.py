from __future__ import annotations

import io
import sys
import types

import pytest

from utils.errors import ConfigError
from utils.progress import Progress, format_seconds, showing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, seconds: float, step: float, total: int | None = 100, note: str = "") -> Clock:
    clock = Clock()
    with Progress("Training", total, "steps", stream, clock) as progress:
        for done in range(int(seconds / step) + 1):
            progress.update(done, note)
            clock.now += step
    return clock


@pytest.mark.parametrize(("seconds", "lines"), [(5, 2), (25, 4)])
def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(seconds, lines):
    stream = io.StringIO()
    run(stream, seconds, 0.01, total=10_000)
    assert len(stream.getvalue().splitlines()) == lines
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_line_rewritten_at_most_five_times_a_second():
    stream = Terminal()
    run(stream, 2, 0.01, total=1000)
    assert stream.getvalue().count("\n") == 1
    assert 9 <= stream.getvalue().count("\r") <= 2 * 5 + 2


def test_a_shorter_line_wipes_a_longer_one():
    stream, clock = Terminal(), Clock()
    progress = Progress("T", 10, "", stream, clock)
    progress.update(1, "a very long note")
    clock.now += 1
    progress.update(2, "short")
    first, second = stream.getvalue().split("\r")[1:]
    assert len(second) >= len(first)


def test_share_count_note_and_remaining_time_are_shown():
    clock = Clock()
    progress = Progress("Training", 600, "steps", io.StringIO(), clock)
    progress.update(0)
    clock.now += 60
    progress.update(120, "loss 3.21")
    assert progress.render() == "Training:  20% · 120/600 steps · loss 3.21 · 1:00, 4:00 left"


def test_the_rate_of_a_resumed_run_counts_only_what_this_display_saw():
    clock = Clock()
    progress = Progress("Training", 600, "steps", io.StringIO(), clock)
    progress.update(500)
    clock.now += 10
    progress.update(550)
    assert progress.render().endswith("0:10, 0:10 left")


def test_an_unknown_total_shows_only_the_count():
    progress = Progress("Reading", None, "files", io.StringIO(), Clock())
    progress.update(1234)
    assert progress.render() == "Reading: 1,234 files · 0:00"


def test_control_characters_can_neither_break_the_line_nor_move_the_cursor():
    stream = io.StringIO()
    run(stream, 0, 1, note="bad\r\n\x1b[2Jnote")
    assert "\x1b" not in stream.getvalue() and "bad [2Jnote" in stream.getvalue()


def test_an_error_inside_is_named_and_passed_on():
    stream = io.StringIO()
    with pytest.raises(KeyError), Progress("Training", 10, "", stream, Clock()):
        raise KeyError
    assert "stopped: KeyError" in stream.getvalue()


def test_closing_twice_writes_once():
    stream = io.StringIO()
    progress = Progress("Training", 10, "", stream, Clock())
    progress.update(10)
    progress.close()
    progress.close()
    assert len(stream.getvalue().splitlines()) == 1


def test_it_is_a_progress_callable():
    progress = Progress("Training", stream=io.StringIO(), clock=Clock())
    progress(3, 12, "note")
    assert (progress.done, progress.total, progress.fraction) == (3, 12, 0.25)


def test_a_notebook_gets_one_output_with_escaped_text(monkeypatch):
    shown, updated = [], []
    handle = types.SimpleNamespace(update=updated.append)

    def display(item, display_id):
        shown.append(item)
        return handle

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    clock = Clock()
    with Progress("<b>Training</b>", 4, clock=clock) as progress:
        for done in range(5):
            progress.update(done, "<script>alert(1)</script>")
            clock.now += 0.3
    assert len(shown) == 1
    assert len(updated) == 2 + 1  # at 0.6 s, 1.2 s and at the end
    html = updated[-1]._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "<b>" not in html
    assert 'value="1.0000"' in html


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3661, "1:01:01"), (-1, "0:00")])
def test_seconds_are_written_as_a_clock(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("progress", [True, False])
def test_what_was_asked_for_is_shown(progress, capsys):
    with showing(progress, "Reading", "texts") as report:
        report(3, 4, "half")
    assert ("Reading:  75% · 3/4 texts · half" in capsys.readouterr().err) is progress


def test_a_callable_is_told_as_it_is():
    told = []
    with showing(lambda *state: told.append(state), "Reading") as report:
        report(1, None, "note")
    assert told == [(1, None, "note")]


def test_anything_else_is_refused():
    with pytest.raises(ConfigError, match=r"True, False or a callable.*got str"), showing("yes", "Reading"):
        pass


def test_preparation_before_the_first_unit_says_nothing_about_the_rate():
    clock = Clock()
    progress = Progress("Training", None, "steps", io.StringIO(), clock)
    progress(0, None, "reading")
    clock.now += 80
    progress(1, 11, "loss 3.2")
    clock.now += 10
    progress(6, 11, "loss 3.1")
    assert progress.render().endswith("1:30, 0:10 left")
