from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks.preserved import preserved
from utils.tier1_critical_validation import TIER1

pytestmark = pytest.mark.usefixtures("no_onnx_dry_run")


def _state(model):
    """Everything that a check must not change, in comparable form."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {
            name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in model.named_parameters()
        },
        "modes": {name: module.training for name, module in model.named_modules()},
        "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002 -- the global state is what must not move
    }


def _same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    return a == b


def _lived_in(model):
    """A model as a user may hold it: mixed modes, some gradients, some frozen weights."""
    model.train()
    model.blocks[0].eval()
    model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    model.norm.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("check", TIER1, ids=lambda check: check.name)
@pytest.mark.parametrize(
    "build", [m.Healthy, m.Untidy, m.ZeroHead, m.RaisesInTraining], ids=lambda build: build.__name__
)
def test_every_check_leaves_the_model_as_it_was(build, check):
    model = _lived_in(build())
    adapted = adapt(model)
    before = _state(adapted)
    check(adapted)
    after = _state(adapted)
    assert [key for key in before if not _same(before[key], after[key])] == []


def _wreck(model):
    model.eval()
    model.calls.add_(5)
    model.calls = torch.ones(3)
    model.cache.append(7)
    model.count, model.extra = 9, "new"
    model.head.weight.requires_grad_(False)
    model.blocks.append(torch.nn.Linear(1, 1))
    model.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model.norm.weight.mul_(0)
    model.norm.bias.grad = torch.ones_like(model.norm.bias)
    model.token_embedding.to(torch.float16)
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002


def test_everything_comes_back_even_after_an_exception():
    model = _lived_in(m.Untidy())
    before = _state(model)

    def use():
        with preserved(model):
            assert all(p.grad is None for p in model.parameters())
            _wreck(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    after = _state(model)
    assert [key for key in before if not _same(before[key], after[key])] == []
    assert (model.cache, model.count, hasattr(model, "extra"), len(model.blocks)) == ([1], 0, False, 2)
    assert model.token_embedding.weight.dtype == torch.float32


def test_tied_weights_stay_tied():
    model = m.Healthy(tied=True)
    with preserved(model), torch.no_grad():
        model.head.weight.mul_(2)
    assert model.head.weight is model.token_embedding.weight
