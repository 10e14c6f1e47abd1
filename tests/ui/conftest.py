"""What the tests of the wizard share: one tokenizer, one thread."""

from __future__ import annotations

import pytest
import torch

from tests.training.tiny import TEXT
from utils.tokenization.bpe_trainer import FastBPETrainer


@pytest.fixture(scope="session")
def tokenizer():
    return FastBPETrainer.train_on_dataset([TEXT], 300)


@pytest.fixture
def one_thread():
    """Trainings of tests share cores with each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
