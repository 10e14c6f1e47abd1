"""Trying the trained model: a text that grows token by token, with what else the model thought of. No widget."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.training.generation import TokenChoice, generate_tokens
from utils.ui.decisions.live import writes

if TYPE_CHECKING:
    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.result import TrainingResult

FINAL = "final"
"""Name of the weights that the training handed over."""


@dataclass(frozen=True)
class Drawing:
    """How texts are written; as `utils.generate` takes it.

    Attributes:
        temperature: 0 always takes the likeliest token. top_k: 0 draws from all tokens.
        tokens: most tokens to add. seed: the same one gives the same text.
    """

    temperature: float = 0.8
    top_k: int = 50
    tokens: int = 60
    seed: int = 0


class Playground:
    """Writes texts with the weights of a run.

    Args:
        result: what the training gave.

    Attributes:
        checkpoints: (name, words) of the weights that can be tried, the final ones first.
    """

    def __init__(self, result: TrainingResult) -> None:
        from utils.training.recovery import saved_generations

        self.result = result
        self._files = {str(item.step): item for item in saved_generations(result.run_folder)}
        self.checkpoints = [(FINAL, "the trained model")]
        self.checkpoints += [(name, _words(item.step, item.val_loss)) for name, item in self._files.items()]
        self._models: dict[str, AdaptedModel] = {FINAL: result.model}

    @property
    def why_not(self) -> str:
        """Why there is nothing to try; empty where there is."""
        if not writes(self.result.model):
            task = self.result.model.contract.task
            return f"A model for {task} continues no text. Its measures are in the dashboard, and its export runs elsewhere."
        if self.result.tokenizer is None:
            return "The model was trained on token ids without a tokenizer: there is no text to begin with."
        return ""

    def write(self, checkpoint: str, prompt: str, how: Drawing) -> Iterator[TokenChoice]:
        """Continue a prompt, token by token.

        Args:
            checkpoint: name among `checkpoints`.
            prompt: how the text begins.
            how: temperature and the rest.

        Raises:
            ConfigError, TokenizerError, GenerationError: as `utils.generate`. CheckpointError: the weights are damaged.
        """
        return generate_tokens(
            self._model(checkpoint),
            prompt,
            tokenizer=self.result.tokenizer,
            max_new_tokens=how.tokens,
            temperature=how.temperature,
            top_k=how.top_k or None,
            seed=how.seed,
        )

    def _model(self, checkpoint: str) -> AdaptedModel:
        """The model with these weights; a copy beside the trained one, which stays as it is."""
        from utils.training.recovery import load_weights

        if checkpoint not in self._models:
            self._models = {FINAL: self.result.model}  # one copy at a time: models may be large
            model = copy.deepcopy(self.result.model)
            load_weights(model, Path(self.result.run_folder), self._files[checkpoint])
            self._models[checkpoint] = model
        return self._models[checkpoint]


def _words(step: int, loss: float | None) -> str:
    return f"step {step:,}" + ("" if loss is None else f" (validation loss {loss:.3f})")
