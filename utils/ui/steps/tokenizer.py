"""The view of step 3: how text becomes the numbers that the model reads."""

from __future__ import annotations

from typing import Any

from utils.ui import widgets
from utils.ui.decisions.tokenizer import STRATEGIES
from utils.ui.steps.step import Shell, begin, said
from utils.ui.work import Outcome

INTRO = "A model reads numbers, not letters: the tokenizer cuts text into pieces that each have a number."
OWN_HINT = "A folder, a tokenizer.json, a SentencePiece .model, or a name on the Hugging Face Hub such as gpt2."


class TokenizerStep:
    """A strategy with its reason, and a line to try it on."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.decision = shell, shell.setup.tokenizer
        form = self.decision.form
        self._strategy = widgets.choice("Kind", "tb-tok-strategy", options=[("Automatic", "")], value="")
        self._own = widgets.text_field(
            "Where it is", "tb-tok-own", value=form.own, placeholder="folder, file or owner/name"
        )
        self._own_group = widgets.column(self._own, widgets.hint(OWN_HINT))
        self._make = widgets.button("Make it", "tb-tok-make", click=self.make, style="primary", icon="refresh")
        self._reason = widgets.html_block("tb-tok-reason")
        self._try = widgets.text_area("Try it", "tb-tok-try", value=form.tried, rows=2)
        self._colour = widgets.html_block("tb-tok-colour")
        self._try_group = widgets.column(self._try, self._colour)
        for control, chosen in (
            (self._strategy, lambda name: self._chosen(at_once=name != "custom", strategy=name)),
            (self._own, lambda place: self._chosen(own=place.strip())),
            (self._try, self._tried),
        ):
            widgets.on_change(control, said(shell, chosen))
        self.view = widgets.column(
            widgets.intro(INTRO),
            self._strategy,
            self._own_group,
            widgets.row(self._make, classes=["tb-actions"]),
            self._reason,
            self._try_group,
            classes=["tb-step", "tb-tokenizer"],
        )

    def enter(self) -> None:
        """Show what was chosen; make it where that needs no further word."""
        self._paint()
        decision = self.decision
        wanted = not (decision.is_made or decision.not_needed or decision.missing())
        if self.shell.may_begin and wanted and not self.shell.busy:
            self.make()

    def leave(self) -> str:
        """Empty where the tokenizer is there and fits."""
        return self.decision.problem()

    def make(self) -> None:
        """Make what is chosen."""
        decision = self.decision
        if begin(self.shell, decision.missing(), decision.make, self._ended, "Preparing the tokenizer …"):
            self._paint_buttons()

    def _chosen(self, at_once: bool = False, **values: Any) -> None:
        before = self.decision.form
        self.decision.choose(**values)
        if self.decision.form == before:
            return
        self._paint()
        if at_once:
            self.make()

    def _tried(self, text: str) -> None:
        self.decision.choose(tried=text)
        self._paint_tokens()

    def _ended(self, outcome: Outcome) -> None:
        self._paint()

    def _paint(self) -> None:
        decision = self.decision
        options = [(told, name) for name, told in decision.strategies.items()]
        names = [name for _, name in options]
        widgets.fill_options(self._strategy, options, decision.form.strategy if decision.form.strategy in names else "")
        needed = not decision.not_needed
        widgets.show(self._strategy, needed)
        widgets.show(self._own_group, needed and decision.form.strategy == "custom")
        widgets.show(self._make, needed)
        choice = decision.choice
        self._reason.value = widgets.text_html(
            "tokenizer_reason.html",
            not_needed=decision.not_needed,
            choice=choice,
            kind="" if choice is None else STRATEGIES[choice.strategy],
            notes=() if choice is None else choice.notes,
        )
        widgets.show(self._try_group, decision.is_made)
        self._paint_tokens()
        self._paint_buttons()

    def _paint_tokens(self) -> None:
        pieces = self.decision.pieces()
        self._colour.value = widgets.text_html(
            "tokens.html",
            pieces=pieces,
            characters=len(self.decision.form.tried),
            unknown=sum(piece.is_unknown for piece in pieces),
        )

    def _paint_buttons(self) -> None:
        self._make.disabled = self.shell.busy
        self._make.description = "Make it again" if self.decision.is_made else "Make it"
