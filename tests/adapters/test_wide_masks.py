"""A mask in float32 beside queries in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.adapters.wide_masks import MatchingMasks

LENGTH = 64
LATER = nn.Transformer.generate_square_subsequent_mask(LENGTH)  # float32


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_a_layer_gives_in_float64_what_it_gives_in_float32(training: bool, padded: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True).train(training)
    wide = copy.deepcopy(layer).double()
    x = torch.randn(3, LENGTH, 16)
    padding = torch.zeros(3, LENGTH)
    padding[0, -9:] = float("-inf")
    masks = {"src_mask": LATER, "src_key_padding_mask": padding if padded else None}
    with MatchingMasks():
        found = wide(x.double(), **masks)
    torch.testing.assert_close(found.float(), layer(x, **masks), atol=2e-6, rtol=0)


@pytest.mark.parametrize("mask", [None, LATER, LATER.double(), LATER == 0])
def test_other_masks_stay_as_they_are(mask: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, 8, dtype=torch.float64)
    scores = x @ x.transpose(1, 2) / 8**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    with MatchingMasks():
        found = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    torch.testing.assert_close(found, scores.softmax(-1) @ x)
