"""The picture of a run: what is recorded is drawn, what is not is said, and nothing from outside becomes markup."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.training.tiny import make_tiny
from utils.errors import ConfigError
from utils.training.curves import MOST_POINTS, Panel, Series, picture_png, picture_svg
from utils.training.dashboard import NOT_RECORDED, Dashboard, loss_panel
from utils.training.drift_metrics import compare_profiles, compute_dataset_profile
from utils.training.engine.loop import STEP_COLUMNS
from utils.training.engine.resources import RESOURCE_COLUMNS
from utils.training.engine.trainer import Trainer
from utils.training.metrics_tracker import MetricsTracker
from utils.training.run_folder import write_csv
from utils.training.training_config import TrainingConfig

HOSTILE = '<script>alert(1)</script>"&$x$'
PANELS = ("loss", "perplexity and bits per byte", "learning rate", "gradient norm", "speed and memory", "drift")


@pytest.fixture
def folder(tmp_path):
    """A run that recorded everything."""
    run = tmp_path / "my run"
    rows = [
        (s, 3 / s, 1e-3 / s, 3 / s if s % 10 == 0 else None, 1 / s if s % 10 == 0 else None, 2 / s, 0.5, None)
        for s in range(1, 101)
    ]
    write_csv(run / "metrics.csv", STEP_COLUMNS, rows)
    write_csv(run / "resources.csv", RESOURCE_COLUMNS, [(50, 5.0, 1000.0, 2**30), (100, 10.0, 1100.0, 2**31)])
    (run / "config.json").write_text(json.dumps({"learning_rate": 1e-3, "batch_size": 8, "notes": HOSTILE}), "utf-8")
    profiles = [compute_dataset_profile(np.random.default_rng(s).integers(0, 99, (40, 16))) for s in (0, 1)]
    compare_profiles(*profiles, names=("training", HOSTILE)).save(run / "drift.json")
    return run


def test_all_that_is_recorded_is_drawn(folder, tmp_path):
    board = Dashboard(folder)
    assert [panel.missing for panel in board.panels()] == [""] * 6
    assert tuple(panel.title for panel in board.panels())[:5] == PANELS[:5]
    loss, quality, _, norm, resources, drift = board.panels()
    assert len(loss.series[0].y) == 100 and list(loss.series[-1].x) == list(range(10, 101, 10))
    assert quality.series[0].y[-1] == pytest.approx(np.exp(0.03)) and len(quality.right) == 2
    assert list(norm.series[0].y) == [0.5] * 100
    assert list(resources.right[0].y) == [1.0, 2.0]
    assert drift.title == "drift: none"
    assert board.save_png(tmp_path / "a" / "b.png").read_bytes().startswith(b"\x89PNG")
    page = board.save_html(tmp_path / "b.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>") or "<!DOCTYPE html>" in page[:200]
    assert NOT_RECORDED not in page and NOT_RECORDED not in board.summary()


def test_what_is_not_recorded_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{}", "utf-8")
    board = Dashboard(tmp_path)
    assert [panel.missing for panel in board.panels()] == [NOT_RECORDED] * 6
    assert board.html().count(NOT_RECORDED) >= 7  # six values of the table and the picture
    assert board.png().startswith(b"\x89PNG")


def test_a_page_is_self_contained_and_escaped(folder):
    page = Dashboard(folder).html()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "color-scheme: light dark" in page
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)[^"']*""", page)
    assert not [item for item in outside if "xlink" not in item], outside
    assert "<script" not in Dashboard(folder)._repr_html_()


def test_a_training_and_its_folder_show_the_same(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 300, (12, 16))
    config = TrainingConfig(learning_rate=1e-2, batch_size=4, run_name="r", epochs=2)
    result = Trainer(make_tiny(), None, config, workspace=tmp_path).train(blocks, blocks[:4])
    by_result, by_folder = Dashboard(result), Dashboard(result.run_folder)
    assert by_result.history == by_folder.history
    shown = {panel.title: panel.missing for panel in by_result.panels()}
    assert shown["loss"] == shown["learning rate"] == ""
    assert list(by_result.panels()[0].series[0].y) == result["step_loss_history"]
    result.run_folder.rename(tmp_path / "moved")
    again = Dashboard(result)
    assert list(again.panels()[0].series[0].y) == result["step_loss_history"]
    assert "gone" in again.summary()


def test_epochs_of_a_tracker_are_shown_over_epochs(tmp_path):
    tracker = MetricsTracker(False, folder=tmp_path)
    for epoch in range(3):
        tracker.log_epoch(epoch, {"loss": 3.0 - epoch}, {"loss": 3.1 - epoch}, learning_rate=1e-3, gradient_norm=0.5)
    (tmp_path / "config.json").write_text("[]", "utf-8")
    panels = Dashboard(tmp_path).panels()
    assert panels[0].xlabel == "epoch" and list(panels[0].series[0].y) == [3.0, 2.0, 1.0]
    assert [panel.missing for panel in panels] == ["", "", "", "", NOT_RECORDED, NOT_RECORDED]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "step,train/loss\n1,nan\n2,\n3,word\n"),
        ("metrics.csv", ""),
        ("metrics.csv", "step\n"),
        ("metrics.csv", "a,b\n1,2\n"),
        ("drift.json", "{"),
        ("drift.json", '{"profiles": 3}'),
        ("manifest.json", "[]"),
        ("resources.csv", "step,tokens_per_second\nx,y\n"),
    ],
)
def test_a_torn_or_odd_file_costs_its_panel_only(tmp_path, name, content):
    (tmp_path / "run.json").write_text("{}", "utf-8")
    (tmp_path / name).write_text(content, "utf-8")
    assert {panel.missing for panel in Dashboard(tmp_path).panels()} == {NOT_RECORDED}


@pytest.mark.parametrize("source", ["no/such/folder", 3, {"loss": 1}, None])
def test_what_is_no_run_is_refused(source):
    with pytest.raises(ConfigError):
        Dashboard(source)


def test_an_empty_folder_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="no folder of a run"):
        Dashboard(tmp_path)


def test_long_curves_are_thinned_to_means():
    thin = Series("", range(1, 10_001), [float(value) for value in range(10_000)]).thinned()
    assert len(thin.x) == MOST_POINTS and thin.x[-1] == 10_000 and thin.y[0] == 4.5
    holes = Series("", range(2000), [float("nan")] * 2000).thinned()
    assert all(np.isnan(holes.y))


def test_the_running_mean_has_as_many_points_as_the_curve():
    from utils.training.dashboard import Column

    panel = loss_panel(Column(tuple(range(100)), tuple(float(i) for i in range(100))), Column())
    assert [series.label for series in panel.series] == ["training", "training, mean of 10"]
    assert panel.series[1].y[:3] == [0.0, 0.5, 1.0] and panel.series[1].y[-1] == 94.5


def test_labels_are_text_in_every_picture():
    panel = Panel(
        HOSTILE, HOSTILE, HOSTILE, [Series(HOSTILE, [1, 2], [1, 2]), Series("b", [1], [1])], marks=[(HOSTILE, 1)]
    )
    assert "<script" not in picture_svg([panel], 1)
    assert picture_png([panel, Panel("x", bars=[(HOSTILE, 1.0)])]).startswith(b"\x89PNG")
