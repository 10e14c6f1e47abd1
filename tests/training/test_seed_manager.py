from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from utils.errors import ConfigError
from utils.training.seed_manager import set_random_seed


def drawn(seed: int) -> list[float]:
    set_random_seed(seed)
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]  # noqa: NPY002


def test_every_source_is_seeded():
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert all(a != b for a, b in zip(first, other))


def test_deterministic_is_switched_on_and_off():
    set_random_seed(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    set_random_seed(1)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", None, True])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match="whole number from 0 to 4294967295"):
        set_random_seed(seed)
