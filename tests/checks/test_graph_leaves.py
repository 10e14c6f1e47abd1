from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.checks.graph_leaves import leaves_of, unregistered_leaves


class Scaled(nn.Module):
    """A layer, and something beside it that the loss would teach."""

    def __init__(self, beside):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.beside = beside

    def forward(self, x):
        extra = self.beside() if callable(self.beside) else self.beside
        while isinstance(extra, (list, dict)):
            extra = extra[0] if isinstance(extra, list) else extra["a"]
        return self.layer(x) * extra


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        (nn.Parameter(torch.ones(3)), []),
        (torch.ones(3), []),
        (torch.ones(3, requires_grad=True), ["beside"]),
        ([nn.Parameter(torch.ones(3))], ["beside"]),
        ({"a": [nn.Parameter(torch.ones(3))]}, ["beside"]),
        (lambda: torch.ones(3, requires_grad=True), ["a tensor of shape (3,) made in forward"]),
    ],
    ids=["parameter", "constant", "tensor", "list", "dict", "made in forward"],
)
def test_what_no_optimizer_would_move_is_named(beside, names):
    model = Scaled(beside)
    found = unregistered_leaves(model, model(torch.ones(2, 3)).sum())
    assert len(found) == len(names)
    assert all(name in seen for name, seen in zip(names, found, strict=True)), found


def test_each_leaf_comes_once():
    layer = nn.Linear(3, 3)
    x = torch.ones(1, 3)
    assert {id(leaf) for leaf in leaves_of((layer(layer(x))).sum())} == {id(layer.weight), id(layer.bias)}
