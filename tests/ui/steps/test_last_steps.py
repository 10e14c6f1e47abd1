"""Steps 4 and 5 and the results with real widgets in this process, as a person uses them."""

from __future__ import annotations

import html
import re
import signal
import time
from types import SimpleNamespace

import ipywidgets
import pytest

from tests.training.tiny import TinyTransformer, make_tiny
from tests.ui.hostile_strings import HOSTILE, OWNED
from tests.ui.small_setup import small_setup
from utils.training.curves import Panel, Series
from utils.training.engine.memory import MemoryEstimate
from utils.training.forecast import Cost
from utils.training.forecast_scaling import MeasuredModel, Point
from utils.training.generation import TokenChoice
from utils.training.live_plot import LivePicture
from utils.ui import setup_wizard, widgets
from utils.ui.decisions.live import Sample
from utils.ui.decisions.sample_hooks import SampleHooks
from utils.ui.setup_wizard import SetupWizard

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING, START, RESULTS = 3, 4, 5
TAG = re.compile(r"<[a-zA-Z/!][^>]*>")


@pytest.fixture(autouse=True)
def measured_in_no_time(monkeypatch):
    """Measuring has tests of its own."""

    def measure(adapted, batch_size, precision, *, device, progress):
        memory = MemoryEstimate({"parameters": 1e5}, 1e4, 0.0)
        return MeasuredModel(adapted, (Point(1, 16, Cost(0.03, 0.01, 0.01)),), memory, 16, precision, device)

    monkeypatch.setattr("utils.training.forecast_scaling.measure_model", measure)


@pytest.fixture
def start(tmp_path, tokenizer):
    """A wizard whose first three steps are done, as a kernel shows it that was restarted."""

    def make(in_thread=True, **given):
        wizard = SetupWizard(TinyTransformer(), folder=tmp_path / "wizard", in_thread=in_thread)
        wizard.setup = small_setup(tmp_path, tokenizer, **given)
        wizard.setup.state.go(TRAINING)
        wizard._place = TRAINING
        assert wizard.view.children and wizard.worker.join(60)
        return wizard

    return make


def every(widget):
    """A widget and all below it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def find(wizard, name):
    """The widget with a class."""
    (found,) = [widget for widget in every(wizard.view) if name in widget._dom_classes]
    return found


def text(wizard, name):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", find(wizard, name).value)).split())


def is_visible(wizard, name):
    """Whether nothing above a widget is hidden."""
    wanted = find(wizard, name)

    def below(parent):
        if parent.layout.display == "none":
            return False
        return parent is wanted or any(below(child) for child in getattr(parent, "children", ()))

    return below(wizard.view)


def press(wizard, name, wait=True):
    button = find(wizard, name)
    assert not button.disabled and is_visible(wizard, name), name
    button.click()
    assert not wait or wizard.worker.join(100)


# ---- step 4 ----------------------------------------------------------------------------------------------------------
def test_the_forecast_is_there_by_itself_and_follows_the_hand(start):
    wizard = start()
    before = text(wizard, "tb-forecast")
    assert "time" in before and "CPU" in before and not is_visible(wizard, "tb-measure")
    slowest = 0.0
    for epochs in (3, 30):
        begun = time.process_time()
        find(wizard, "tb-epochs").value = epochs
        slowest = max(slowest, time.process_time() - begun)
        assert f"{epochs} epochs" in text(wizard, "tb-forecast")
    assert slowest < 0.2
    find(wizard, "tb-batch").value = 7
    find(wizard, "tb-length").value = 8
    find(wizard, "tb-rate").value = 3e-3
    config = wizard.setup.training.config()
    assert (config.epochs, config.batch_size, config.max_length, config.learning_rate) == (30, 7, 8, 3e-3)


def test_a_preset_moves_the_controls_and_says_what_it_is_for(start):
    wizard = start()
    find(wizard, "tb-preset").value = "large"
    assert (find(wizard, "tb-batch").value, find(wizard, "tb-epochs").value) == (4, 3)
    assert wizard.setup.training.form.changes == {}  # moved by the preset, and not by the person
    find(wizard, "tb-preset").value = "fast_dev"
    assert "20 steps" in text(wizard, "tb-forecast")


def test_what_was_moved_is_there_again_after_a_restart(start):
    find(start(), "tb-batch").value = 7
    assert find(start(), "tb-batch").value == 7


def test_a_wrong_setting_is_told_at_once_and_holds_the_step(start):
    wizard = start()
    press(wizard, "tb-advanced")
    find(wizard, "tb-set-weight-decay").value = "much"
    find(wizard, "tb-set-warmup-ratio").value = "7"
    shown = text(wizard, "tb-forecast")
    assert "weight_decay" in shown and "warmup_ratio" in shown and shown.count("expected") == 2
    press(wizard, "tb-next")
    assert "weight_decay" in text(wizard, "tb-message") and is_visible(wizard, "tb-training")
    find(wizard, "tb-set-weight-decay").value = "0.2"
    find(wizard, "tb-set-warmup-ratio").value = "0.2"
    assert wizard.setup.training.config().weight_decay == 0.2
    press(wizard, "tb-next")
    assert is_visible(wizard, "tb-review")


def test_a_secret_in_a_field_is_refused_and_kept_nowhere(start, tmp_path):
    wizard, secret = start(), "hf_" + "a" * 34
    press(wizard, "tb-advanced")
    find(wizard, "tb-set-notes").value = secret
    assert "looks like a Hugging Face token" in "".join(
        w.value for w in every(wizard.view) if hasattr(w, "value") and isinstance(w.value, str)
    )
    state = tmp_path / "wizard" / "wizard.json"
    assert not state.exists() or secret not in state.read_text()


def test_precision_that_the_machine_has_not_is_refused(start):
    wizard = start()
    find(wizard, "tb-precision").value = "16-mixed"
    assert "needs a CUDA device" in text(wizard, "tb-forecast")


def test_copies_need_a_folder(start, tmp_path):
    wizard = start()
    assert not is_visible(wizard, "tb-drive-folder")
    find(wizard, "tb-drive").value = True
    assert is_visible(wizard, "tb-drive-folder") and "no folder" in text(wizard, "tb-forecast")
    find(wizard, "tb-drive-folder").value = str(tmp_path / "copies")
    assert wizard.setup.training.config().mirror_dir == str(tmp_path / "copies")


def test_weights_and_biases_cannot_be_ticked_without_a_key(start):
    wizard = start()
    assert find(wizard, "tb-wandb").disabled and not is_visible(wizard, "tb-wandb-project")


# ---- step 5 and the results ------------------------------------------------------------------------------------------
@pytest.fixture
def short(start):
    """At the start, with a training of some steps."""

    def make(steps=16, **given):
        wizard = start(**given)
        for name, value in {"batch_size": 4, "max_steps": steps, "val_every_n_steps": 8}.items():
            wizard.setup.training.change(name, value)
        wizard.go(START)
        return wizard

    return make


def test_the_page_of_the_start_shows_everything(short):
    wizard = short()
    shown = text(wizard, "tb-summary")
    for words in ("TinyTransformer", "160 documents", "300 tokens", "16 steps", "32-true", "You can stop at any time"):
        assert words in shown
    assert not is_visible(wizard, "tb-anew") and not is_visible(wizard, "tb-see")


def test_start_stop_continue_try_export_and_download(short, monkeypatch):
    wizard = short()
    hold = SimpleNamespace(step=5)
    monkeypatch.setattr(
        SampleHooks,
        "on_step_end",
        lambda self, step, loss: press(wizard, "tb-stop", False) if step == hold.step else None,
    )
    press(wizard, "tb-start")
    assert is_visible(wizard, "tb-live") and "saved" in text(wizard, "tb-message")
    assert is_visible(wizard, "tb-continue") and not is_visible(wizard, "tb-stop")
    assert "before training" in text(wizard, "tb-samples") and "<polyline" in find(wizard, "tb-curve").value
    hold.step = -1
    press(wizard, "tb-continue")
    assert wizard.result is not None and wizard.result["resumed_from_step"] == 5
    assert "finished" in text(wizard, "tb-message") and "16/16 steps" in text(wizard, "tb-line")
    assert "<svg" in find(wizard, "tb-dashboard").value and "continued from step 5" in text(wizard, "tb-facts-of-run")

    find(wizard, "tb-play-tokens").value = 12
    find(wizard, "tb-play-right").value = wizard.setup.results.playground.checkpoints[-1][0]
    press(wizard, "tb-play-run")
    first, second = find(wizard, "tb-play-text").value, find(wizard, "tb-play-text-2").value
    assert all(0 < shown.count('class="tb-token"') <= 12 and "likeliest" in shown for shown in (first, second))

    for name in ("onnx", "hf"):
        find(wizard, f"tb-format-{name}").value = False
    find(wizard, "tb-format-safetensors").value = True
    press(wizard, "tb-export")
    assert "safetensors" in text(wizard, "tb-parity") and wizard.bundle is not None
    press(wizard, "tb-download")
    assert "Everything is in" in text(wizard, "tb-message")


def test_a_stop_before_the_first_step_saves_nothing_and_says_so(short, monkeypatch):
    wizard = short()
    train = wizard.setup.results.train

    def stopped(ticket, anew=False):
        ticket.stop()
        return train(ticket, anew)

    monkeypatch.setattr(wizard.setup.results, "train", stopped)
    press(wizard, "tb-start")
    assert "before the first step" in text(wizard, "tb-message") and not is_visible(wizard, "tb-continue")


def test_formats_ticked_during_an_export_wait_for_the_next_one(short, monkeypatch):
    wizard = short(4)
    press(wizard, "tb-start")

    def export(result, formats, out, progress):
        find(wizard, "tb-format-safetensors").value = True
        return SimpleNamespace(formats=formats, _repr_html_=lambda: "table")

    monkeypatch.setattr("utils.export.bundle.export", export)
    press(wizard, "tb-export")
    assert wizard.bundle is None and "Press Export again" in text(wizard, "tb-message")
    press(wizard, "tb-export")
    assert "safetensors" in wizard.bundle.formats and find(wizard, "tb-parity").value == "table"


def test_a_new_kernel_shows_the_finished_run_again(short):
    press(short(), "tb-start")
    wizard = short()
    assert "finished already" in text(wizard, "tb-summary") and is_visible(wizard, "tb-see")
    press(wizard, "tb-see")
    assert wizard.result is not None and is_visible(wizard, "tb-play-run")


def test_a_failure_says_why_and_what_to_do(short, monkeypatch):
    wizard = short()
    monkeypatch.setattr(
        wizard.setup.dataset, "prepare", lambda ticket: (_ for _ in ()).throw(OSError("disk <b>gone</b>"))
    )
    press(wizard, "tb-start")
    assert "OSError: disk <b>gone</b>" in text(wizard, "tb-message") or "gone" in text(wizard, "tb-message")
    assert "<b>gone" not in find(wizard, "tb-message").value


def test_where_threads_cannot_paint_the_click_trains(short):
    """As in Colab: the callback itself works, and the page shows the end of it."""
    wizard = short(in_thread=False)
    press(wizard, "tb-start")
    assert wizard.result is not None and is_visible(wizard, "tb-play-run")


def test_the_cell_trains_where_nobody_clicked(start):
    wizard = start()
    for name, value in {"batch_size": 4, "max_steps": 6}.items():
        wizard.setup.training.change(name, value)
    wizard.setup.validation.require = lambda ticket: None
    result = wizard.train()
    assert len(result["step_loss_history"]) == 6 and wizard.train() is result


@pytest.mark.parametrize("step", [3, -1])
def test_the_panel_in_the_cell_comes_to_rest_with_the_training(start, monkeypatch, step):
    """Stopped or finished: nothing more can be interrupted, and only a stopped one goes on."""
    wizard = start(in_thread=False)
    for name, value in {"batch_size": 4, "max_steps": 6}.items():
        wizard.setup.training.change(name, value)
    wizard.setup.validation.require = lambda ticket: None
    monkeypatch.setattr(setup_wizard, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda shown: None)
    monkeypatch.setattr(
        SampleHooks,
        "on_step_end",
        lambda self, done, loss: signal.raise_signal(signal.SIGINT) if done == step else None,
    )
    wizard.train()
    panel = {name: widget for widget in every(wizard._cell) for name in widget._dom_classes}
    assert panel["tb-bar"].layout.display == "none" and panel["tb-stop"].layout.display == "none"
    hints = [widget for widget in every(wizard._cell) if "interrupt button" in str(getattr(widget, "value", ""))]
    assert [widget.layout.display for widget in hints] == ["none"]
    assert panel["tb-continue"].layout.display == ("" if step == 3 else "none")


# ---- markup stays text -----------------------------------------------------------------------------------------------
def markup(wizard):
    """Every tag that a page would read."""
    for widget in every(wizard.view):
        if isinstance(widget, ipywidgets.HTML):
            yield from TAG.findall(widget.value)


def owned(tags):
    return [tag for tag in tags if OWNED in tag and not tag.startswith(('<span class="tb-token"', "<svg class="))]


def test_hostile_names_texts_and_metrics_stay_text(short):
    wizard = short()
    wizard.go(RESULTS)
    live = wizard.setup.results.live
    adapted = make_tiny()
    for number, hostile in enumerate(HOSTILE):
        adapted.model.__class__ = type(hostile.replace("\0", "") or "x", (TinyTransformer,), {})
        wizard.setup.validation.adapted = adapted
        wizard.setup.validation.form.verdict = hostile
        object.__setattr__(wizard.setup.dataset.loaded, "name", hostile)
        live.draw(hostile, 0.5)
        live.show(LivePicture(Panel(hostile, hostile, hostile, [Series(hostile, [1, 2], [1.0, 2.0])])))
        live.add(Sample(3, hostile, hostile, ""))
        live.add(Sample(3, hostile, hostile, hostile))
        if number % 5 == 0:  # the page with everything takes its time
            wizard._pages[START]._paint()
        assert owned(markup(wizard)) == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_tokens_stay_text(hostile):
    token = TokenChoice(hostile, 0.5, ((hostile, 0.5), ("x", 0.1)))
    shown = widgets.text_html("written.html", title=hostile, prompt=hostile, tokens=[token], going_on=False)
    inside = re.sub(r'title="[^"]*"', "", shown)
    assert not [tag for tag in TAG.findall(inside) if OWNED in tag]
    assert html.unescape(re.sub(r"<[^>]*>", "", inside)).count(hostile) == 3
