"""Tiny model and tokenizer for training tests."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.training.tiny import TEXT, make_tiny
from utils.adapters.causality import sees_future
from utils.adapters.model_adapter import AdaptedModel
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.training.fingerprint import model_identity


@pytest.fixture
def tiny() -> AdaptedModel:
    return make_tiny()


@pytest.fixture(scope="session")
def tokenizer():
    return FastBPETrainer.train_on_dataset([TEXT], 300)


@pytest.fixture(autouse=True)
def one_thread_and_own_random_state():
    """Training sets global seeds, and bit-exactness holds for one number of threads."""
    threads, states = torch.get_num_threads(), (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002 - the state that is guarded
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    torch.use_deterministic_algorithms(False)


ASKED: dict[tuple[str, ...], object] = {}
"""Answers to whether a model sees the future, by everything that the answer depends on."""


@pytest.fixture(autouse=True)
def asked_once(monkeypatch):
    """Hundreds of tests train the same tiny model: whether it sees the future is found out once in each process."""

    def remembered(adapted):
        modules = tuple(f"{name}:{module!r}:{vars(module).get('causal')}" for name, module in adapted.named_modules())
        code = str(getattr(type(adapted.model).forward, "__code__", None))
        key = (code, *model_identity(adapted).values(), *modules)
        if key not in ASKED:
            ASKED[key] = sees_future(adapted)
        return ASKED[key]

    monkeypatch.setattr("utils.training.objective.sees_future", remembered)
