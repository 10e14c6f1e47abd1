"""Step 3 of the wizard."""

from __future__ import annotations

from utils.ui import widgets
from utils.ui.steps.step import Shell


class TokenizerStep:
    """Step 3."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.view = widgets.column(widgets.html_block(value=widgets.plain_html("Step 3")), classes=["tb-tokenizer"])

    def enter(self) -> None:
        """Nothing to bring up to date."""

    def leave(self) -> str:
        """Nothing is missing."""
        return ""
