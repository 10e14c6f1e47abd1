"""What a constructor's `config` argument is given where the file defines no class for it.

Imports nothing: exported folders of transformers hold a copy of this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any


class ConfigNamespace(SimpleNamespace):
    """Settings as attributes and as items, under every spelling of the sizes: what a `config` argument is given."""

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name]

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def get(self, name: str, default: Any = None) -> Any:
        """The setting, or `default`."""
        return self.__dict__.get(name, default)

    def keys(self) -> Any:
        """Names of the settings; makes `**config` work."""
        return self.__dict__.keys()
