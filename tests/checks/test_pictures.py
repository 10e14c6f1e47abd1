"""Each picture holds what its result measured, and can be drawn for results of any size."""

from __future__ import annotations

import numpy as np
import pytest

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import memory, pictures, speed
from utils.checks.figures import short
from utils.checks.pictures_insight import MOST_HEADS, MOST_LAYERS
from utils.checks.report import CheckResult


def result(name, rows, **arrays):
    return CheckResult(name, "pass", "", measured={"table": rows, "explained": "score of token 3"}, arrays=arrays)


def test_memory_is_drawn_in_parts_and_over_the_batch():
    drawn = memory.check(adapt(m.Healthy()))
    left, right = drawn.figure().axes
    assert [patch.get_height() for patch in left.patches] == pytest.approx(
        [row["GB"] for row in drawn.measured["table"] if row["GB"] >= 0.01 * drawn.measured["total_gb"]]
    )
    line = right.lines[0]
    assert list(line.get_xdata()) == list(memory.BATCHES)
    assert dict(zip(line.get_xdata(), line.get_ydata()))[memory.BATCH] == pytest.approx(drawn.measured["total_gb"])


def test_speed_has_a_bar_for_each_shape():
    drawn = speed.check(adapt(m.Healthy()))
    (axes,) = drawn.figure().axes
    assert [bar.get_width() for bar in axes.patches] == [row["tokens/s"] for row in drawn.measured["table"]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 × 32", "8 × 32"]


def test_of_many_heads_and_layers_some_are_drawn():
    maps = {f"layer.{i}": np.full((20, 6, 6), 1 / 6) for i in range(30)}
    rows = [{"layer": name, "head": head, "kind": "uniform"} for name in maps for head in range(20)]
    figure = result("attention patterns", rows, **maps).figure()
    assert len(figure.axes) == MOST_LAYERS * MOST_HEADS
    assert figure.axes[0].get_title() == "0 uniform"
    assert figure.axes[0].get_ylabel() == "layer.0" and figure.axes[-MOST_HEADS].get_ylabel() == "layer.29"


def test_attributions_are_bars_of_tokens_or_a_picture():
    rows = [{"position": i, "token id": 7, "attribution": value} for i, value in enumerate((0.5, -0.2))]
    (axes,) = result("attribution", rows, tokens=np.zeros(2)).figure().axes
    assert [bar.get_height() for bar in axes.patches] == [0.5, -0.2]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    picture = result("attribution", [{"row": 0}], pixels=np.eye(4)).figure()
    assert picture.axes[0].images[0].get_array().shape == (4, 4)


def test_similarity_of_many_layers_keeps_its_names_readable():
    rows = [{"layer": f"layers.{i}"} for i in range(100)]
    (axes, _) = result("layer similarity", rows, cka=np.eye(100)).figure().axes
    assert len(axes.get_xticks()) <= 40


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_without_measurements_nothing_is_drawn(name):
    assert CheckResult(name, "skip", "").figure() is None


def test_long_names_keep_their_end():
    assert short("model.decoder.layers.11.self_attn", 12) == "…1.self_attn"
    assert short("head", 12) == "head"
