"""What is exported: where the mask matters, and what padding looks like."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from export import zoo
from utils.export.subject import padding_mask, subject_of


@pytest.mark.parametrize(
    ("make", "sides"),
    [
        (zoo.PostNorm, ("left", "right")),
        (lambda: zoo.PostNorm(causal=True), ("left",)),
        (zoo.IgnoresMask, ()),
        (zoo.Nano, ()),
    ],
)
def test_the_mask_is_exported_only_where_it_matters(make: type[nn.Module], sides: tuple[str, ...]) -> None:
    subject = subject_of(make(), config=zoo.CONFIG)
    assert subject.masked_sides == sides
    assert subject.input_names == (("input_ids", "attention_mask") if sides else ("input_ids",))


class NeedsBoolMask(zoo.Bigram):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            raise TypeError("mask must be bool")
        return self.table(input_ids)


def test_a_mask_that_makes_the_model_fail_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="utils.export"):
        subject = subject_of(NeedsBoolMask(), config=zoo.CONFIG)
    assert not subject.takes_mask
    assert "fails when given one (TypeError: mask must be bool)" in subject.facts["mask"]
    assert "mask must be bool" in caplog.text


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        ((1, 6), "left", [[0, 0, 1, 1, 1, 1]]),
        ((3, 4), "right", [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]),
        ((1, 1), "left", [[1]]),
        ((2, 3), "", [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_padding_mask(shape: tuple[int, int], side: str, expected: list[list[int]]) -> None:
    np.testing.assert_array_equal(padding_mask(shape, side), expected)


def test_shared_weights_are_counted_once() -> None:
    model = zoo.Bigram()
    model.head = nn.Linear(zoo.V, zoo.V, bias=False)
    model.head.weight = model.table.weight
    assert subject_of(model, config=zoo.CONFIG).weight_bytes() == 4 * zoo.V * zoo.V
