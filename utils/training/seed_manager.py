"""Seeds of everything that draws random numbers. Leaves saving and restoring random states to `engine.checkpoint`."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import torch

from utils.errors import ConfigError

logger = logging.getLogger(__name__)


def set_random_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch (every device), and choose between fast and reproducible kernels.

    Args:
        seed: 0 to 2**32 - 1 (the range that NumPy takes).
        deterministic: True makes torch refuse operations that have no reproducible kernel and turns cuDNN's search for
            the fastest kernel off; False puts both back.

    Raises:
        ConfigError: the seed is no whole number or out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"random_seed must be a whole number from 0 to {2**32 - 1}; got {seed!r}.")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(seed)  # CUDA too, lazily where no device has been used yet
    if deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS is reproducible only with a fixed workspace
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False
    logger.debug("seeded with %d (deterministic=%s)", seed, deterministic)
