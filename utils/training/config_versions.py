"""Brings settings of older file formats to the current one: one function per old version. Knows plain values only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from utils.errors import ConfigError

FORMAT_VERSION = 2
"""Version of the JSON form of `TrainingConfig`; raise it with a function in `_UPGRADES` that reads the one before."""


def upgraded(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Settings of any known version as those of the current one; the values that came stay as they are.

    Args:
        values: what the file holds, `format_version` among it; a file without one is of the current version.
        name: of the file, for messages.

    Raises:
        ConfigError: a version that is no number, or newer than this package.
    """
    settings = dict(values)
    version = settings.pop("format_version", FORMAT_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ConfigError(
            f"{name} has format version {version!r}; this package reads 1 to {FORMAT_VERSION}. Update the package."
        )
    for step in range(version, FORMAT_VERSION):
        settings = _UPGRADES[step](settings)
    return settings


def _from_1(settings: dict[str, Any]) -> dict[str, Any]:
    """Version 1 trained with the batch size that it was given: so does its upgrade, on whatever GPU."""
    return {"fit_batch_to_memory": False, **settings}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""Old version → what makes the next one of it."""
