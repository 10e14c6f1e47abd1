from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.adapters.contract import CallContract
from utils.adapters.lengths import measured_lengths, other_lengths
from utils.adapters.model_adapter import adapt
from utils.errors import TokenIdError
from utils.loading.model_config import ModelConfig


@pytest.mark.parametrize(
    ("runs", "length", "expected"),
    [
        (lambda n: n == 24, 24, (24, 24, 1)),  # one length only: (shortest, longest, multiples of)
        (lambda n: n % 8 == 0, 16, (8, None, 8)),
        (lambda n: n % 4 == 0, 8, (4, None, 4)),
        (lambda n: n >= 7, 8, (7, None, 1)),
        (lambda n: 6 <= n <= 8, 8, (6, 8, 1)),
    ],
)
def test_lengths_are_told_apart(runs, length: int, expected: tuple[int, int | None, int]) -> None:
    contract = measured_lengths(CallContract(), length, lambda _, n: runs(n))
    assert (contract.min_length, contract.max_length, contract.multiple_of) == expected


def test_stated_lengths_are_tried_first() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block_size = 48

    assert other_lengths(Blocks(), ModelConfig.of(None))[:2] == [48, 8]


class Chunks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] % 8 == 0
        return self.head(self.embedding(x))


def test_lengths_that_do_not_fit_are_refused() -> None:
    adapted = adapt(Chunks())
    assert "lengths: multiples of 8" in adapted.contract.summary()
    with pytest.raises(TokenIdError, match="12 tokens long, the model takes multiples of 8 tokens"):
        adapted.check_inputs(torch.zeros(1, 12, dtype=torch.long))
    adapted.check_inputs(torch.zeros(1, 16, dtype=torch.long))
