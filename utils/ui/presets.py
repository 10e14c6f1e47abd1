"""The choice of a preset, with what each is for. A view; the presets themselves are `utils.training.presets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from utils.training.presets import PRESETS
from utils.ui import widgets

if TYPE_CHECKING:
    from utils.ui.decisions.training import TrainingDecision

WORDS = {
    "fast_dev": "A quick trial (twenty steps)",
    "standard": "Standard",
    "large": "A large model",
    "classification": "Classification",
    "vision": "Images",
    "given": "As the notebook passed them",
}
"""Name of a preset → what people call it."""


class PresetChoice:
    """A list of presets with the purpose of the chosen one below.

    Args:
        chosen: called with the name that the person chose.
    """

    def __init__(self, chosen: Callable[[str], None]) -> None:
        self._list = widgets.choice("Preset", "tb-preset", options=_options(tuple(PRESETS)))
        self._purpose = widgets.html_block("tb-why")
        widgets.on_change(self._list, chosen)
        self.view = widgets.column(self._list, self._purpose)

    def paint(self, decision: TrainingDecision) -> None:
        """Show the preset in use and why."""
        names = (*PRESETS, *(["given"] if decision.given is not None else []))
        widgets.fill_options(self._list, _options(names), decision.preset)
        purpose = PRESETS[decision.preset].purpose if decision.preset in PRESETS else ""
        why = decision.reasons().get("preset", "")
        self._purpose.value = widgets.text_html(
            "why.html", text=" ".join(part for part in (purpose, _sentence(why)) if part)
        )


def _options(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(WORDS.get(name, name), name) for name in names]


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""
