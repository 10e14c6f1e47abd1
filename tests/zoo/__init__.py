"""Models of every kind that the calling contract must serve, and what is asked of each. `python -m tests.zoo` prints the table."""

from __future__ import annotations
