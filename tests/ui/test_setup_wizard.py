"""The frame and the first three steps, with real widgets in this process, in both ways of working."""

from __future__ import annotations

import csv
import datetime
import html
import re
import threading

import ipywidgets
import pytest
from checks import models as m
from checks.test_mending import CONFIG, FAULTS, HEALTHY

from tests.ui.decisions.test_dataset import SENTENCES, TWO_COLUMNS
from tests.ui.hostile_strings import HOSTILE, OWNED
from utils import tier1_critical_validation as tier1
from utils.checks import determinism, gradients
from utils.errors import CheckError, ConfigError, DataError
from utils.training.training_config import TrainingConfig
from utils.ui import setup_wizard
from utils.ui.decisions.live import Live
from utils.ui.setup_wizard import SetupWizard

SIZES = {"vocab_size": 400, "max_seq_len": m.LIMIT}
WAYS = pytest.mark.parametrize("in_thread", [True, False], ids=["thread", "main thread"])
TAG = re.compile(r"<[a-zA-Z/!][^>]*>")


@pytest.fixture(autouse=True)
def _few_checks(monkeypatch):
    monkeypatch.setattr(tier1, "TIER1", (gradients.check, determinism.check))


@pytest.fixture
def start(tmp_path):
    """Makes a wizard in one folder, as a kernel does that was restarted."""

    def make(in_thread=False, model=None, config=SIZES, **given):
        model = m.Healthy(vocabulary=400, layers=1) if model is None else model
        return SetupWizard(model, config, folder=tmp_path / "wizard", in_thread=in_thread, **given)

    return make


def every(widget):
    """A widget and all below it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def find(wizard, name):
    """The widget with a class."""
    found = [widget for widget in every(wizard.view) if name in widget._dom_classes]
    assert len(found) == 1, name
    return found[0]


def click(wizard, name):
    """Press a button, as far as it can be pressed, and wait for what it began."""
    button = find(wizard, name)
    assert not button.disabled, name
    assert is_visible(wizard, button), name
    button.click()
    assert wizard.worker.join(60)


def is_visible(wizard, widget):
    """Whether nothing above a widget is hidden."""

    def below(parent):
        if parent.layout.display == "none":
            return False
        return parent is widget or any(below(child) for child in getattr(parent, "children", ()))

    return below(wizard.view)


def text(wizard, name):
    return html.unescape(re.sub(r"<[^>]*>", " ", find(wizard, name).value))


def upload(wizard, name, content):
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": when}
    find(wizard, "tb-data-upload").value = (file,)
    assert wizard.worker.join(60)


def paint(wizard):
    """Make its widgets, as `run` does, without a page."""
    assert wizard.view.children


def to_step(wizard, place):
    """Walk to a step, 1 for the first; nothing has to be clicked but Next where threads work."""
    paint(wizard)
    assert wizard.worker.join(60)
    if not wizard.worker.in_thread and not wizard.setup.validation.form.verdict:
        click(wizard, "tb-check-again")
    for _ in range(place - 1):
        click(wizard, "tb-next")
    return wizard


def lines_of_markup(wizard):
    """Everything that a page reads as markup."""
    for widget in every(wizard.view):
        if isinstance(widget, ipywidgets.HTML):
            yield from TAG.findall(widget.value)


@WAYS
def test_a_person_walks_through_the_first_steps(start, in_thread):
    wizard = to_step(start(in_thread, data=SENTENCES), 1)
    assert "All 2 checks passed" in text(wizard, "tb-verdict")
    assert "gradient flow" in text(wizard, "tb-check-rows")
    assert text(wizard, "tb-message").strip() == ""
    click(wizard, "tb-next")
    assert "60 documents" in text(wizard, "tb-data-preview")
    assert "passed" in text(wizard, "tb-data-quality")
    click(wizard, "tb-next")
    assert "It fits." in text(wizard, "tb-tok-reason")
    assert "tokens for" in text(wizard, "tb-tok-colour")
    assert wizard.setup.state.step == 2
    assert [find(wizard, f"tb-step-{n}").disabled for n in range(1, 6)] == [False] * 3 + [True] * 2


@WAYS
def test_the_next_step_is_made_while_nobody_waits_and_stays_hidden(start, in_thread):
    wizard = to_step(start(in_thread, data=SENTENCES), 1)
    assert not is_visible(wizard, find(wizard, "tb-dataset"))
    click(wizard, "tb-next")
    assert is_visible(wizard, find(wizard, "tb-dataset"))
    assert not is_visible(wizard, find(wizard, "tb-tokenizer"))


@WAYS
def test_going_back_keeps_what_was_done(start, in_thread):
    wizard = to_step(start(in_thread, data=SENTENCES), 3)
    find(wizard, "tb-tok-try").value = "seven words"
    made = wizard.setup.tokenizer.made
    click(wizard, "tb-back")
    click(wizard, "tb-step-1")
    assert is_visible(wizard, find(wizard, "tb-check-rows"))
    assert not is_visible(wizard, find(wizard, "tb-tok-try"))
    click(wizard, "tb-step-3")
    assert find(wizard, "tb-tok-try").value == "seven words"
    assert wizard.setup.tokenizer.made is made


@WAYS
def test_a_restarted_kernel_goes_on_where_it_was(start, in_thread):
    wizard = to_step(start(in_thread), 2)
    find(wizard, "tb-data-kind").value = "upload"
    upload(wizard, "mine.txt", "\n".join(SENTENCES).encode())
    click(wizard, "tb-next")
    again = start(in_thread)
    paint(again)
    assert again.worker.join(60)
    assert again.setup.state.step == 2
    assert is_visible(again, find(again, "tb-tok-strategy"))
    click(again, "tb-back")
    assert find(again, "tb-data-kind").value == "upload"
    assert "mine.txt" in text(again, "tb-data-uploaded")
    assert again.setup.dataset.is_read
    click(again, "tb-back")
    assert "All 2 checks passed" in text(again, "tb-verdict")


def test_showing_the_wizard_begins_no_work_where_the_cell_must_return(start):
    for place in (0, 1, 2):
        wizard = start(in_thread=False)
        wizard.setup.state.go(place)
        again = start(in_thread=False)
        paint(again)
        assert again.setup.validation.report is None
        assert again.setup.dataset.loaded is None
        assert again.setup.tokenizer.made is None


def test_a_click_begins_work_where_only_the_main_thread_can(start):
    wizard = to_step(start(in_thread=False), 1)
    assert wizard.setup.dataset.loaded is None
    click(wizard, "tb-next")
    assert wizard.setup.dataset.loaded is not None


def test_no_step_is_left_before_it_is_complete(start, tmp_path):
    wizard = start(in_thread=False)
    paint(wizard)
    click(wizard, "tb-next")
    assert "press Check" in text(wizard, "tb-message")
    click(wizard, "tb-check-again")
    click(wizard, "tb-next")
    find(wizard, "tb-data-kind").value = "path"
    click(wizard, "tb-next")
    assert "Type the path" in text(wizard, "tb-message")
    find(wizard, "tb-data-path").value = str(tmp_path / "nowhere.txt")
    click(wizard, "tb-data-load")
    assert "There is no file or folder" in text(wizard, "tb-message")
    click(wizard, "tb-next")
    assert wizard.setup.state.step == 1
    find(wizard, "tb-data-kind").value = "example"
    click(wizard, "tb-next")
    find(wizard, "tb-tok-strategy").value = "custom"
    click(wizard, "tb-next")
    assert "Type where your tokenizer is" in text(wizard, "tb-message")
    assert wizard.setup.state.step == 2


def test_a_column_is_chosen_with_one_move(start, tmp_path):
    wizard = to_step(start(in_thread=False), 2)
    find(wizard, "tb-data-kind").value = "upload"
    upload(wizard, "table.csv", TWO_COLUMNS.encode())
    assert "Several columns hold text: title, body" in text(wizard, "tb-message")
    assert "This is sentence number 0" in text(wizard, "tb-data-preview")
    column = find(wizard, "tb-data-column")
    assert is_visible(wizard, column)
    column.value = "body"
    assert "60 documents" in text(wizard, "tb-data-preview")
    click(wizard, "tb-next")
    assert wizard.setup.state.step == 2


@WAYS
def test_from_a_file_straight_to_the_start(start, in_thread):
    """Three clicks and a file: Next, choose a file, straight to the start; there it can begin."""
    wizard = to_step(start(in_thread), 2)
    assert find(wizard, "tb-data-kind").value == "example" and is_visible(wizard, find(wizard, "tb-data-upload"))
    upload(wizard, "mine.txt", "\n".join(SENTENCES).encode())
    assert find(wizard, "tb-data-kind").value == "upload" and "mine.txt" in text(wizard, "tb-data-uploaded")
    click(wizard, "tb-skip")
    assert wizard.setup.state.step == 4 and wizard.setup.results.prepared
    assert "mine.txt" in text(wizard, "tb-summary") and not find(wizard, "tb-start").disabled
    assert not is_visible(wizard, find(wizard, "tb-skip"))


def test_nothing_can_be_started_while_the_last_step_reads(start):
    wizard = to_step(start(in_thread=True, data=SENTENCES), 1)
    go_on = threading.Event()
    prepare = wizard.setup.results.prepare
    wizard.setup.results.prepare = lambda ticket: go_on.wait(60) and prepare(ticket)
    find(wizard, "tb-skip").click()
    assert wizard.busy and find(wizard, "tb-start").disabled
    go_on.set()
    assert wizard.worker.join(60) and not find(wizard, "tb-start").disabled


def test_nobody_goes_straight_to_the_start_past_what_is_missing(start):
    wizard = start(in_thread=False)
    paint(wizard)
    click(wizard, "tb-skip")
    assert "press Check" in text(wizard, "tb-message") and wizard.setup.state.step == 0
    click(wizard, "tb-check-again")
    click(wizard, "tb-next")
    find(wizard, "tb-data-kind").value = "hub"
    assert not is_visible(wizard, find(wizard, "tb-data-upload"))
    click(wizard, "tb-skip")
    assert "Type the name" in text(wizard, "tb-message") and wizard.setup.state.step == 1


def test_an_upload_that_is_too_large_is_refused(start):
    wizard = to_step(start(in_thread=False), 2)
    find(wizard, "tb-data-kind").value = "upload"
    upload(wizard, "large.txt", b"x" * ((8 << 20) + 1))
    assert "Google Drive" in text(wizard, "tb-message")
    assert wizard.setup.dataset.form.upload == ""


def test_a_full_disk_is_said_and_stops_nobody(start, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    wizard = to_step(start(in_thread=False, data=SENTENCES), 1)
    monkeypatch.setattr("utils.ui.state.write_json", full)
    monkeypatch.setattr("utils.ui.decisions.dataset.whole_file", full)
    click(wizard, "tb-next")
    assert "No space left" in text(wizard, "tb-notice") and "60 documents" in text(wizard, "tb-data-preview")
    find(wizard, "tb-data-kind").value = "upload"
    upload(wizard, "mine.txt", b"some words to read")
    assert "No space left" in text(wizard, "tb-message")


TOKEN = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    ("place", "field", "kept"),
    [
        (2, "tb-data-hub", lambda setup: setup.dataset.form.hub),
        (2, "tb-data-path", lambda setup: setup.dataset.form.path),
        (3, "tb-tok-own", lambda setup: setup.tokenizer.form.own),
        (3, "tb-tok-try", lambda setup: setup.tokenizer.form.tried),
    ],
)
def test_a_key_in_a_field_is_refused_and_said(start, place, field, kept):
    wizard = to_step(start(in_thread=False, data=SENTENCES), place)
    find(wizard, field).value = TOKEN
    assert "Hugging Face token" in text(wizard, "tb-message")
    assert TOKEN not in kept(wizard.setup)


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.checks.session.PATCH_SECONDS", 600.0)
    old, new, _ = FAULTS["dropout"]
    place = tmp_path / "model"
    place.mkdir()
    (place / "model.py").write_text(HEALTHY.replace(old, new))
    (place / "config.json").write_text(CONFIG)
    return place


@WAYS
def test_a_fix_is_one_click_away(start, faulty, in_thread):
    wizard = to_step(start(in_thread, faulty, None), 1)
    assert "A fix is ready" in text(wizard, "tb-check-rows")
    click(wizard, "tb-next")
    assert "Apply the fixes" in text(wizard, "tb-message")
    click(wizard, "tb-mend")
    assert "All 2 checks passed" in text(wizard, "tb-verdict")
    assert not is_visible(wizard, find(wizard, "tb-mend"))
    click(wizard, "tb-unmend")
    assert find(wizard, "tb-check-again").description == "Check"


def test_whoever_ticks_goes_on_anyway(start, faulty):
    wizard = to_step(start(False, faulty, None), 1)
    with pytest.raises(CheckError, match=r"Training was not begun"):
        wizard.train()
    find(wizard, "tb-anyway").value = True
    click(wizard, "tb-next")
    assert wizard.setup.state.step == 1


def test_the_last_step_says_what_an_earlier_one_lacks(start, faulty):
    """Whoever presses the name of a step passes by no Next: the start itself knows what is missing."""
    wizard = to_step(start(False, faulty, None), 1)
    find(wizard, "tb-anyway").value = True
    wizard.go(4)
    assert "Nothing" not in text(wizard, "tb-summary") and not find(wizard, "tb-start").disabled
    lacks = {
        "Model (step 1)": (lambda on: setattr(find(wizard, "tb-anyway"), "value", not on), "Go on anyway"),
        "Data (step 2)": (
            lambda on: setattr(find(wizard, "tb-data-kind"), "value", "path" if on else "example"),
            "Type the path",
        ),
        "Tokenizer (step 3)": (
            lambda on: setattr(find(wizard, "tb-tok-strategy"), "value", "custom" if on else ""),
            "Type where your tokenizer is",
        ),
    }
    for place, (name, (lacking, words)) in enumerate(lacks.items()):
        wizard.go(place)
        lacking(True)
        click(wizard, "tb-step-5")
        told = text(wizard, "tb-summary")
        assert name in told and words in told and "Nothing, until" in told
        assert find(wizard, "tb-start").disabled
        wizard.go(place)
        lacking(False)
        click(wizard, "tb-step-5")
        assert name not in text(wizard, "tb-summary") and not find(wizard, "tb-start").disabled


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": 3}, "takes an nn.Module.*got int"),
        ({"model": object()}, "takes an nn.Module.*got object"),
        ({"training_config": {"epochs": -1}}, "epochs=-1: expected a whole number"),
        ({"training_config": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"training_config": TrainingConfig(batch_size="all")}, "batch_size='all'"),
        ({"training_config": [1]}, "a mapping of settings; got list"),
    ],
)
def test_what_cannot_be_is_refused_in_the_cell_that_gives_it(start, given, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        start(**given)


def test_an_error_of_the_model_is_shown_in_the_step(start, tmp_path):
    wizard = start(False, tmp_path / "nowhere", None)
    paint(wizard)
    click(wizard, "tb-check-again")
    assert "no file or folder" in text(wizard, "tb-message")
    assert not find(wizard, "tb-check-again").disabled


def test_other_work_is_not_begun_beside_the_one_that_goes_on(start, monkeypatch):
    wizard = start(in_thread=True)
    begun = []

    def endless(ticket, changed):
        begun.append(1)
        while True:
            ticket.progress(1)

    monkeypatch.setattr(wizard.setup.validation, "check", endless)
    paint(wizard)
    assert not wizard.work(lambda ticket: begun.append(2))
    assert "still being done" in text(wizard, "tb-message")
    assert is_visible(wizard, find(wizard, "tb-halt"))
    stop = wizard.worker.stop
    monkeypatch.setattr(wizard.worker, "stop", lambda: (stop(), wizard.worker.join(60)))  # faster than the click
    find(wizard, "tb-halt").click()
    assert text(wizard, "tb-message").strip() == "Stopped."
    assert not is_visible(wizard, find(wizard, "tb-halt"))
    assert begun == [1]


def test_a_state_that_cannot_be_read_is_said(start, tmp_path):
    (tmp_path / "wizard").mkdir()
    (tmp_path / "wizard" / "wizard.json").write_text("{")
    wizard = start()
    assert "begins with its defaults" in text(wizard, "tb-notice")


def test_run_shows_it_once_and_returns_nothing(start, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    wizard = start()
    assert wizard.run() is None
    assert wizard.run() is None
    assert shown == [wizard.view, wizard.view]


class Trained:
    """Stands in for the run."""

    result, bundle = None, None

    def __init__(self, setup):
        self.setup, self.live = setup, Live()

    def train(self, ticket):
        data = self.setup.dataset.prepare(ticket)
        self.result = {"data": data, "tokenizer": self.setup.tokenizer.prepare(ticket)}
        return self.result


@pytest.mark.parametrize("painted", [True, False])
def test_nobody_clicking_trains_with_the_defaults(start, painted, monkeypatch):
    wizard = start()
    wizard.setup.__dict__["results"] = Trained(wizard.setup)
    monkeypatch.setattr(setup_wizard.SetupWizard, "show_results", lambda self: None)
    if painted:
        paint(wizard)
    result = wizard.train()
    assert result is wizard.result
    assert result["data"] == "python-docs"
    assert len(result["tokenizer"]) <= 400
    assert wizard.setup.validation.form.passed


def test_an_error_of_the_training_is_raised_in_the_cell(start):
    wizard = start()
    wizard.setup.__dict__["results"] = Trained(wizard.setup)
    wizard.setup.dataset.choose(kind="path", path="nowhere.txt")
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        wizard.train()


def test_markup_from_outside_stays_text(start, tmp_path):
    """Through the name of a class, of a file, of columns, cells, a path, a tried text and messages."""
    model = type(HOSTILE[7], (m.Healthy,), {})(vocabulary=400, layers=1)
    wizard = to_step(start(False, model), 2)
    find(wizard, "tb-data-kind").value = "path"
    for text_ in HOSTILE:
        find(wizard, "tb-data-path").value = text_
        find(wizard, "tb-data-load").click()
        wizard.say(text_, "bad")
        wizard._show_progress(1, 2, text_)
        assert not [tag for tag in lines_of_markup(wizard) if OWNED in tag], text_
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["<b>text</b> onerror=x", HOSTILE[9]])
        rows.writerows([(f"{text_} and some more words to read", n) for n, text_ in enumerate(HOSTILE)])
    find(wizard, "tb-data-path").value = str(table)
    click(wizard, "tb-data-load")
    assert f"{len(HOSTILE)} documents" in text(wizard, "tb-data-preview") or "rows were left out" in text(
        wizard, "tb-data-preview"
    )
    assert not [tag for tag in lines_of_markup(wizard) if OWNED in tag or tag == "<b>text</b>"]
    click(wizard, "tb-next")
    for text_ in HOSTILE:
        find(wizard, "tb-tok-try").value = text_
        assert not [tag for tag in lines_of_markup(wizard) if OWNED in tag], text_
