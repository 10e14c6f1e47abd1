"""Models of a wanted size to hold somebody's model against: a GPT and an LSTM in plain torch. Train nothing.

The GPT is that of the built-in examples; sizes are counted by formula before anything is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from utils.training.example_models import TinyCausalLM, TinyClassifier

HEADS = 4
"""Heads of the GPT: its width is a multiple of it."""

SHAPES = (16.0, 128.0)
"""Width per layer of a GPT that is neither a thread nor a pancake; Kaplan et al. 2020 (arXiv 2001.08361, §3.1) find losses
within 3% over such a range."""

LSTM_LAYERS = 2


class LSTMStack(nn.Module):
    """Embedding, LSTM and norm, which both models share."""

    def __init__(self, vocab_size: int, width: int, layers: int = LSTM_LAYERS) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, C)."""
        return self.norm(self.lstm(self.token_embedding(ids))[0])


class LSTMLanguageModel(LSTMStack):
    """Scores the next token at each position; the head is the embedding."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, V)."""
        return self.hidden(input_ids) @ self.token_embedding.weight.t()


class LSTMClassifier(LSTMStack):
    """The mean over real tokens speaks for the text."""

    def __init__(self, vocab_size: int, num_classes: int, width: int, layers: int = LSTM_LAYERS) -> None:
        super().__init__(vocab_size, width, layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) and its mask → (B, classes)."""
        x = self.hidden(input_ids)
        if attention_mask is None:
            return self.head(x.mean(1))
        real = attention_mask[..., None].to(x.dtype)
        return self.head((x * real).sum(1) / real.sum(1))


def gpt_of_size(parameters: int, vocab_size: int, max_length: int) -> TinyCausalLM:
    """The GPT whose number of parameters is nearest to the wanted one. Its smallest has the embeddings of a width of 4.

    Args:
        parameters: wanted.
        vocab_size: rows of the embedding.
        max_length: positions.

    Example:
        >>> gpt_of_size(1_000_000, 5_000, 128).token_embedding.weight.shape
        torch.Size([5000, 92])
    """
    width, layers = _gpt_shape(parameters, vocab_size + max_length)
    return TinyCausalLM(vocab_size, max_length, width, layers)


def gpt_classifier_of_size(parameters: int, vocab_size: int, max_length: int, classes: int) -> TinyClassifier:
    """The same structure as a classifier, seeing both ways."""
    width, layers = _gpt_shape(parameters - classes, vocab_size + max_length + classes)
    return TinyClassifier(vocab_size, max_length, classes, width, layers)


def lstm_of_size(parameters: int, vocab_size: int) -> LSTMLanguageModel:
    """The LSTM of two layers whose number of parameters is nearest to the wanted one."""
    return LSTMLanguageModel(vocab_size, _lstm_width(parameters, vocab_size))


def lstm_classifier_of_size(parameters: int, vocab_size: int, classes: int) -> LSTMClassifier:
    """The same structure as a classifier."""
    return LSTMClassifier(vocab_size, classes, _lstm_width(parameters - classes, vocab_size + classes))


def _gpt_shape(parameters: int, rows: int) -> tuple[int, int]:
    """Width and layers; `rows` are vectors of the model's width in embeddings and head."""
    found = []
    for layers in range(1, 97):
        width = _nearest(lambda w, n=layers: n * (12 * w * w + 13 * w) + (rows + 2) * w, parameters, HEADS)  # type: ignore[misc]
        count = layers * (12 * width * width + 13 * width) + (rows + 2) * width
        odd = not SHAPES[0] <= width / layers <= SHAPES[1]
        found.append((odd and layers > 1, abs(count - parameters), layers, width))
    _, _, layers, width = min(found)
    return width, layers


def _lstm_width(parameters: int, rows: int) -> int:
    return _nearest(lambda w: LSTM_LAYERS * (8 * w * w + 8 * w) + (rows + 2) * w, parameters, 1)


def _nearest(count: Callable[[int], int], wanted: int, step: int) -> int:
    """The multiple of `step` whose count, which rises with it, is nearest to the wanted one; at least `step`."""
    low, high = 1, 2
    while count(high * step) < wanted:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * step) < wanted else (low, middle)
    nearest: Iterable[int] = (low, high)
    return step * min(nearest, key=lambda place: abs(count(place * step) - wanted))
