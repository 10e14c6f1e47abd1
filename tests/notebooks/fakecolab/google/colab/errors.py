"""The root of Colab's exceptions."""

from __future__ import annotations


class Error(Exception):
    """What Colab's functions raise; its message errors derive from it."""
