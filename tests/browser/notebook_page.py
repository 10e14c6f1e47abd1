"""What a person does on a notebook's page: run it, click, type, choose, read, look. Widgets are named by their DOM class.

Leaves opening the page to `front_ends`, and what should come out to the tests.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from playwright.sync_api import Dialog, Download, Locator, Page, expect

WIDTH, HEIGHT = 1280, 1400  # of the page, in pixels
SECONDS = 1000.0  # Playwright counts milliseconds
PATIENCE = 60.0  # seconds for what takes a blink on an idle machine

CHANGED_AFTER_CLICK = """([button, place, text]) => new Promise((resolve, reject) => {
  const started = performance.now();
  const look = () => {
    const shown = document.querySelector(place);
    if (shown && shown.offsetParent && shown.innerText.includes(text)) { resolve(performance.now() - started); return; }
    if (performance.now() - started > 30000) { reject(new Error(`${place} never showed ${text}`)); return; }
    requestAnimationFrame(look);
  };
  document.querySelector(button).click();
  look();
})"""


class NotebookPage:
    """One notebook in one page.

    Attributes:
        page: Playwright's own page.
        folder: where the notebook lies, which is the kernel's folder.
        errors: what scripts of the page threw.
        clicks: how often a person has clicked so far, the file button included and the file dialog itself not.
        dialogs: texts of the dialogs that opened (each was dismissed); a script that was smuggled in opens one.
    """

    def __init__(self, page: Page, front_end: str, folder: Path) -> None:
        """Listen to `page` from before it loads anything."""
        self.page, self.front_end, self.folder = page, front_end, folder
        self.errors: list[str] = []
        self.clicks = 0
        self.dialogs: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(f"{dialog.type}: {dialog.message}")
        dialog.accept() if dialog.type == "beforeunload" else dialog.dismiss()

    def run_all(self) -> None:
        """Run every cell, as the menu does; returns at once."""
        if self.front_end == "jupyterlab":
            self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")
        else:
            self.page.evaluate("() => { Jupyter.notebook.execute_all_cells(); }")

    def run_cell(self, index: int) -> None:
        """Run one cell (counted from 0) as a person would; returns at once."""
        if self.front_end == "jupyterlab":
            self.page.evaluate(
                """index => { jupyterapp.shell.currentWidget.content.activeCellIndex = index;
                              jupyterapp.commands.execute('notebook:run-cell'); }""",
                index,
            )
        else:
            self.page.evaluate("index => { Jupyter.notebook.execute_cells([index]); }", index)

    def restart_kernel(self) -> None:
        """A new kernel under the open page."""
        if self.front_end == "jupyterlab":
            self.page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.restartKernel(); }")
        else:
            self.page.evaluate(
                "() => new Promise((done, failed) => Jupyter.notebook.kernel.restart(() => done(null), failed))"
            )
            self.page.wait_for_timeout(3000)  # until the new kernel has answered; see `FrontEnd.wait_ready`
        self.wait_idle()

    def interrupt(self) -> None:
        """The stop button of the front end."""
        if self.front_end == "jupyterlab":
            self.page.evaluate(
                "async () => { await jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt(); }"
            )
        else:
            self.page.evaluate("() => { Jupyter.notebook.kernel.interrupt(); }")

    def wait_idle(self, seconds: float = PATIENCE) -> None:
        """Until the kernel has nothing to do."""
        idle = (
            "() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
            if self.front_end == "jupyterlab"
            else "() => Jupyter.notebook.kernel.is_connected() && !Jupyter.notebook.kernel_busy"
        )
        self.page.wait_for_function(idle, timeout=seconds * SECONDS)

    def widget(self, name: str) -> Locator:
        """The widget that carries the class `name`."""
        return self.page.locator(f".{name}")

    def control(self, name: str) -> Locator:
        """What takes clicks and keys in it: itself where it is a button, else its field."""
        found = self.page.locator(f"button.{name}, .{name} :is(input, select, textarea, button)")
        return found.first

    def wait_for(self, name: str, seconds: float = PATIENCE) -> None:
        """Until that widget is on the page and visible."""
        self.widget(name).first.wait_for(state="visible", timeout=seconds * SECONDS)

    def click(self, name: str) -> None:
        """Click a button, or a tick."""
        self.clicks += 1
        self.control(name).click(timeout=PATIENCE * SECONDS)

    def text(self, name: str) -> str:
        """What a person reads in it."""
        return self.widget(name).first.inner_text()

    def value(self, name: str) -> str:
        """What stands in its field."""
        return self.control(name).input_value()

    def expect_text(self, name: str, text: Any, seconds: float = PATIENCE) -> None:
        """Until it shows `text` (a string that it contains, or a pattern)."""
        expect(self.widget(name).first).to_contain_text(text, timeout=seconds * SECONDS, use_inner_text=True)

    def fill(self, name: str, text: str) -> None:
        """Type into its field and leave it."""
        field = self.control(name)
        field.fill(text)
        field.press("Tab")

    def choose(self, name: str, option: str) -> None:
        """Take an option of a list by what it says."""
        self.control(name).select_option(label=option)

    def options(self, name: str) -> list[str]:
        """What a list offers."""
        return [text.strip() for text in self.widget(name).locator("option").all_inner_texts()]

    def choose_file(self, name: str, path: Path) -> None:
        """Hand a file to an upload button, through the browser's own file dialog."""
        with self.page.expect_file_chooser() as dialog:
            self.click(name)
        dialog.value.set_files(path)

    def download(self, name: str) -> Download:
        """Click what starts a download and wait for it."""
        with self.page.expect_download(timeout=PATIENCE * SECONDS) as started:
            self.click(name)
        return started.value

    def is_enabled(self, name: str) -> bool:
        """Whether it may be clicked."""
        return self.control(name).is_enabled()

    def wait_until_enabled(self, name: str, seconds: float = PATIENCE) -> None:
        """Until it may be clicked."""
        expect(self.control(name)).to_be_enabled(timeout=seconds * SECONDS)

    def milliseconds_until(self, click: str, place: str, text: str) -> float:
        """From a click on `click` to the frame in which `place` shows `text`, by the page's own clock."""
        return float(self.page.evaluate(CHANGED_AFTER_CLICK, [f".{click}", f".{place}", text]))

    def cell_output(self, index: int) -> str:
        """What a code cell (counted from 0) shows below it."""
        cell = ".jp-CodeCell .jp-Cell-outputWrapper" if self.front_end == "jupyterlab" else ".code_cell .output_wrapper"
        return self.page.locator(cell).nth(index).inner_text()

    def darken(self) -> None:
        """The front end's dark theme; classic Notebook has none, so that its page gets a dark ground."""
        if self.front_end == "jupyterlab":
            self.page.evaluate(
                "async () => { await jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}); }"
            )
        else:
            self.page.add_style_tag(
                content="body, #notebook, #notebook-container, .output_area, .output_subarea { background: #202124 !important; color: #e8eaed; }"
            )

    def screenshot(self, name: str, of: str = "") -> None:
        """A picture of the widget with the class `of` (or the whole page), where BROWSER_PICTURES names a folder."""
        folder = os.environ.get("BROWSER_PICTURES", "")
        if not folder:
            return
        target = self.widget(of).first if of else self.page
        height = int(target.bounding_box()["height"]) if of else 0  # type: ignore[union-attr,index]
        self.page.set_viewport_size({"width": WIDTH, "height": max(HEIGHT, height + 400)})  # nothing scrolls out of it
        target.screenshot(path=Path(folder) / f"{self.front_end}-{name}.png")
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})

    def note(self, name: str, figures: dict[str, float]) -> None:
        """Write figures beside the pictures."""
        if folder := os.environ.get("BROWSER_PICTURES", ""):
            text = json.dumps({key: round(value, 2) for key, value in figures.items()}, indent=1)
            (Path(folder) / f"{self.front_end}-{name}.json").write_text(text + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the page; the kernel lives on, as it does for a person."""
        self.page.context.close()
