"""The playground: a prompt, two checkpoints side by side, text that streams, probabilities under the pointer. A view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from utils.training.generation import TokenChoice
from utils.ui import widgets
from utils.ui.decisions.playground import FINAL, Drawing, Playground

if TYPE_CHECKING:
    from utils.ui.steps.step import Shell
    from utils.ui.work import Outcome, Ticket

PAINT_SECONDS = 0.1
"""Between two paints of a text that grows."""
NONE = ""
"""Choice of the second checkpoint: none."""
HINT = (
    "Rest the pointer on a token to see how sure the model was, and what else it thought of. The darker, the less sure."
)


class PlaygroundView:
    """Asks for a prompt and shows what one or two checkpoints make of it.

    Args:
        shell: of the wizard.
    """

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self._of: Playground | None = None
        self._prompt = widgets.text_area("Prompt", "tb-play-prompt", value="The ", rows=2)
        self._temperature = widgets.slider(
            "Temperature", "tb-play-temperature", value=0.8, least=0.0, most=2.0, step=0.1
        )
        self._top_k = widgets.slider("Top-k (0: all)", "tb-play-top-k", value=50, least=0, most=200, step=5)
        self._tokens = widgets.slider("Tokens", "tb-play-tokens", value=60, least=1, most=400, step=1)
        self._seed = widgets.number("Seed", "tb-play-seed", value=0, least=0, most=10**9)
        self._left = widgets.choice("Weights", "tb-play-left", options=[("the trained model", FINAL)])
        self._right = widgets.choice("Beside it", "tb-play-right", options=[("nothing", NONE)])
        self._run = widgets.button("Write", "tb-play-run", click=self.write, style="primary", icon="pencil")
        self._texts = [widgets.html_block("tb-play-text"), widgets.html_block("tb-play-text-2")]
        self._why_not = widgets.html_block("tb-play-why-not")
        self._body = widgets.column(
            self._prompt,
            self._temperature,
            self._top_k,
            self._tokens,
            self._seed,
            self._left,
            self._right,
            widgets.row(self._run, classes=["tb-actions"]),
            *self._texts,
            widgets.hint(HINT),
        )
        self.view = widgets.column(self._why_not, self._body, classes=["tb-playground"])

    @property
    def _playground(self) -> Playground | None:
        found: Playground | None = self.shell.setup.results.playground
        return found

    def paint(self) -> None:
        """Show which weights there are, or why nothing can be written."""
        playground = self._playground
        if playground is None:
            return
        widgets.show(self._body, not playground.why_not)
        self._why_not.value = widgets.text_html("hint.html", text=playground.why_not) if playground.why_not else ""
        self._run.disabled = self.shell.busy
        if self._of is not playground:
            self._of = playground
            options = [(words, name) for name, words in playground.checkpoints]
            widgets.fill_options(self._left, options, FINAL)
            widgets.fill_options(self._right, [("nothing", NONE), *options], NONE)
            widgets.set_value(self._prompt, self.shell.setup.results.prompt())
            for text in self._texts:
                text.value = ""

    def write(self) -> None:
        """Let the chosen weights write."""
        if self.shell.work(self._written, done=self._ended, begin="Writing …"):
            self._run.disabled = True

    def _ended(self, outcome: Outcome) -> None:
        self._run.disabled = False

    def _written(self, ticket: Ticket) -> None:
        """Both texts grow together, a token each in turn."""
        playground, prompt = self._playground, str(self._prompt.value)
        assert playground is not None
        how = Drawing(self._temperature.value, self._top_k.value, self._tokens.value, self._seed.value)
        names = [self._left.value, *([self._right.value] if self._right.value != NONE else [])]
        self._texts[1].value = ""
        words = dict(playground.checkpoints)
        columns = [
            _Column(place, words[name], prompt, playground.write(name, prompt, how))
            for place, name in zip(self._texts, names)
        ]
        going_on = list(columns)
        while going_on:
            ticket.progress(max(len(column.tokens) for column in columns), None, "writing")
            going_on = [column for column in going_on if column.step()]


class _Column:
    """One text that grows.

    Args:
        place: where it is shown. title: whose it is. prompt: how it begins. choices: its tokens, as they come.
    """

    def __init__(self, place: Any, title: str, prompt: str, choices: Iterator[TokenChoice]) -> None:
        self._place, self._title, self._prompt, self._choices = place, title, prompt, choices
        self.tokens: list[TokenChoice] = []
        self._painted = 0.0

    def step(self) -> bool:
        """Take one token; False at the end of the text."""
        found = next(self._choices, None)
        if found is not None:
            self.tokens.append(found)
        now = time.monotonic()
        if found is None or now - self._painted >= PAINT_SECONDS:
            self._painted = now
            self._place.value = widgets.text_html(
                "written.html",
                title=self._title,
                prompt=self._prompt,
                tokens=self.tokens,
                going_on=found is not None,
            )
        return found is not None
