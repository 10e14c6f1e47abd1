"""What is seen of a training while it runs: a line with speed and time left, the loss curve, sample texts. Draws no widget.

Everything is throttled by what it costs, so that training hardly notices; the clock is an argument.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import TransformerBuilderError
from utils.progress import View
from utils.training.engine.hooks import DefaultHooks
from utils.training.live_plot import LivePicture, LivePlot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.result import TrainingResult
    from utils.ui.work import Outcome

SAMPLE_SECONDS = 5.0
"""Between two sample texts, at least."""
SAMPLE_COST = 0.01
"""Largest share of the time that sample texts may take: one that took 0.1 s is followed by 10 s of rest."""
SAMPLE_TOKENS = 40
MOST_SAMPLES = 12
"""Sample texts that are kept: the first, and the newest ones."""


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote: after `step` optimizer steps, from `prompt`; `problem` where it could not."""

    step: int
    prompt: str
    text: str
    problem: str = ""


class Live(View):
    """The state of a running training. It is where a `Progress` and a `LivePlot` draw, and tells whoever looks.

    Attributes:
        line: where the run is, in one line. fraction: the share that is done; None where nobody knows.
        picture: the newest loss curve; None before the first.
        samples: texts, the oldest first. outcome: how the training ended; None before its end.
    """

    interval = 0.5

    def __init__(self) -> None:
        self.line, self.fraction = "", 0.0
        self.picture: LivePicture | None = None
        self.samples: list[Sample] = []
        self.outcome: Outcome | None = None
        self._watchers: list[Callable[[str], None]] = []

    def watch(self, changed: Callable[[str], None]) -> None:
        """Have every change told: "line", "picture", "samples" or "end", from the thread that trains."""
        self._watchers.append(changed)

    def begin(self) -> None:
        """Forget the training before."""
        self.line, self.fraction, self.picture, self.samples, self.outcome = "", 0.0, None, [], None
        for part in ("line", "picture", "samples"):
            self._tell(part)

    def draw(self, line: str, fraction: float | None) -> None:
        """Take where the run is (for `Progress`)."""
        self.line, self.fraction = line, fraction or 0.0
        self._tell("line")

    def show(self, picture: LivePicture) -> None:
        """Take a loss curve (for `LivePlot`)."""
        self.picture = picture
        self._tell("picture")

    def add(self, sample: Sample) -> None:
        """Take a sample text."""
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[1]
        self._tell("samples")

    def prepare(self, done: int, total: int | None, note: str) -> None:
        """Take what is done before the first step, as a `ProgressCallback`."""
        self.draw(f"Getting ready: {note}" if note else "Getting ready", done / total if total else None)

    def end(self, outcome: Outcome) -> None:
        """Tell that the training ended, and how."""
        self.outcome = outcome
        self._tell("end")

    def plot(self) -> LivePlot:
        """What draws the loss here."""
        return LivePlot(self, seconds=1.0)

    def _tell(self, part: str) -> None:
        for changed in self._watchers:
            changed(part)


class SampleHooks(DefaultHooks):
    """Lets the model write while it learns, in the thread that trains, so that no random state is mixed up.

    Args:
        live: takes the texts.
        prompt: what the model continues.
        begun: told the name of the run before its first step.
        clock: monotonic seconds.
    """

    def __init__(
        self, live: Live, prompt: str, begun: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._live, self._prompt, self._begun, self._clock = live, prompt, begun, clock
        self._model: AdaptedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._next = -float("inf")

    def on_model_ready(self, model: AdaptedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Remember who writes."""
        self._model, self._tokenizer = model, tokenizer

    def on_training_start(self, run_name: str, total_steps: int, first_step: int) -> None:
        """Show what the model writes before it learns."""
        self._begun(run_name)
        self._write(first_step)

    def on_step_end(self, step: int, loss: float | None) -> None:
        """Show what it writes by now, where enough time has passed."""
        if self._clock() >= self._next:
            self._write(step)

    def on_training_end(self, result: TrainingResult) -> None:
        """Show what the trained model writes."""
        self._model, self._tokenizer = result.model, result.tokenizer
        steps = len(result["step_loss_history"])
        if not self._live.samples or self._live.samples[-1].step != steps:
            self._write(steps)

    def _write(self, step: int) -> None:
        if self._model is None or self._tokenizer is None or not writes(self._model):
            self._next = float("inf")
            return
        begun = self._clock()
        self._live.add(self._sample(step))
        now = self._clock()
        self._next = now + max(SAMPLE_SECONDS, (now - begun) / SAMPLE_COST)

    def _sample(self, step: int) -> Sample:
        from utils.training.generation import generate

        assert self._model is not None
        try:
            text = generate(
                self._model, self._prompt, tokenizer=self._tokenizer, max_new_tokens=SAMPLE_TOKENS, seed=step
            )
        except TransformerBuilderError as error:  # a text that cannot be written ends no training
            return Sample(step, self._prompt, "", str(error))
        continues = self._model.contract.task == "lm"
        return Sample(step, self._prompt, text[len(self._prompt) :] if continues else text)


def writes(adapted: AdaptedModel) -> bool:
    """Whether the model continues or answers texts."""
    return adapted.contract.task in ("lm", "seq2seq") and adapted.contract.multiple_of == 1


def prompt_of(documents: Sequence[Any]) -> str:
    """A short beginning for sample texts: the first words of the first document that has some."""
    for text in documents:
        words = str(text).split()
        if words:
            return " ".join(words[:4])[:60]
    return "The"
