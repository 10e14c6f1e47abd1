"""The front ends are what they are said to be, and the driver drives them: three widgets and a download."""

from __future__ import annotations

from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.browser  # needs Chromium, and installs two front ends the first time

VERSIONS = """
import IPython, ipykernel, ipywidgets, torch, utils
from utils.notebook import in_colab
shown = ipywidgets.Label(f"{ipywidgets.__version__} {IPython.__version__} {ipykernel.__version__} {in_colab()}")
shown.add_class("tb-versions"); shown
"""
PAGE = """
import ipywidgets
name, upload, says = ipywidgets.Text(), ipywidgets.FileUpload(), ipywidgets.HTML()
button = ipywidgets.Button(description="Greet")
for widget, label in ((name, "tb-name"), (upload, "tb-upload"), (says, "tb-says"), (button, "tb-greet")):
    widget.add_class(label)
def greet(_): says.value = f"<b>hello {name.value}</b>"
def count(_): says.value = f"{len(upload.value)} file"
button.on_click(greet); upload.observe(count, "value")
ipywidgets.VBox([name, button, upload, says])
"""


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("jupyterlab", "8.1.9 8.39.0 7.4.0 False"),
        ("classic", "7.7.1 7.34.0 6.17.1 False"),
        ("colab", "7.7.1 7.34.0 6.17.1 True"),
    ],
)
def test_the_kernel_has_the_versions_that_were_asked_for(name: str, versions: str, start_front_end) -> None:
    page = start_front_end(name).open(new_notebook(cells=[new_code_cell(VERSIONS)]), "versions")
    page.run_all()
    page.wait_for("tb-versions", 60)
    assert page.text("tb-versions") == versions
    page.close()


def test_a_person_types_clicks_and_chooses_a_file(front_end, tmp_path: Path) -> None:
    page = front_end.open(new_notebook(cells=[new_code_cell(PAGE)]), "page")
    page.run_all()
    page.wait_for("tb-greet")
    page.fill("tb-name", "Ada")
    assert page.milliseconds_until("tb-greet", "tb-says", "hello Ada") < 5000
    (tmp_path / "text.txt").write_text("words")
    page.choose_file("tb-upload", tmp_path / "text.txt")
    page.expect_text("tb-says", "1 file")
    assert page.value("tb-name") == "Ada"
    assert not page.dialogs
    page.screenshot("driver")
    page.close()
