"""The report's picture and its styles, without a walk. What the page shows of a whole walk is in test_demo."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from utils.ui.report_page import ASSETS, loss_curve_svg

BITS = {"untrained": 3.4, "byte trigram": 2.47, "trained": 2.3}


@pytest.mark.parametrize("validations", [1, 4])
def test_the_curve_is_a_picture_that_needs_nothing_else(validations: int) -> None:
    steps = [10 * (number + 1) for number in range(validations)]
    result = {
        "step_loss_history": [6.9 - 0.1 * step for step in range(steps[-1])],
        "val_steps": steps,
        "val_bits_per_byte_history": [3.3 - 0.2 * number for number in range(validations)],
    }
    picture = loss_curve_svg(result, BITS)  # type: ignore[arg-type]  # a mapping is what it reads
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    assert not re.search(r"(?:href|src)=\"(?!#)", picture), "a picture from elsewhere"
    assert "<script" not in picture
    lines = [element for element in root.iter() if element.get("id", "").startswith("line2d")]
    assert len(lines) > 4  # two curves, the baseline and the ticks


def test_the_page_asks_nothing_of_the_outside() -> None:
    for file in ASSETS.iterdir():
        text = file.read_text("utf-8")
        assert not re.search(r"https?://|@import|url\(|<script|<link", text), file.name


def test_the_page_is_readable_in_dark_and_light() -> None:
    style = (ASSETS / "report.css").read_text("utf-8")
    assert "color-scheme: light dark" in style and "CanvasText" in style
