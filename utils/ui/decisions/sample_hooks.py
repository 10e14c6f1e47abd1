"""Lets a model write while it learns. Throttled by what it costs, so that training hardly notices; the clock is an argument."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from utils.errors import TransformerBuilderError
from utils.training.engine.hooks import DefaultHooks
from utils.ui.decisions.live import Live, Sample, writes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.result import TrainingResult

SAMPLE_SECONDS = 5.0
"""Between two sample texts, at least."""
SAMPLE_COST = 0.01
"""Largest share of the time that sample texts may take: one that took 0.1 s is followed by 10 s of rest."""
SAMPLE_TOKENS = 40


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
