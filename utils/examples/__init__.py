"""Bundled example exports: broken in the generator's manner, and small enough to train on a CPU."""

from __future__ import annotations

from pathlib import Path

from utils.errors import ConfigError

EXAMPLES = ("broken_export",)
"""Names of the bundled examples; each is a folder with `model.py` and `config.json`."""


def path(name: str = "broken_export") -> Path:
    """Return the folder of a bundled example.

    Raises:
        ConfigError: there is no example of that name.
    """
    if name not in EXAMPLES:
        raise ConfigError(f"{name!r} is no bundled example; there are {', '.join(EXAMPLES)}.")
    return Path(__file__).parent / name
