"""The bundled example export, small enough that a browser test trains it while somebody watches."""

from __future__ import annotations

import re
from pathlib import Path

import utils.examples

SIZES = {"1024": "512", "512": "64", "128": "32"}  # rows, inner width, width and length limit
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards mix a potion of bright green light\n"


def write_tiny_export(folder: Path, name: str = "") -> Path:
    """Write `model.py` and `config.json` of a model with 512 rows, width 32 and 32 tokens at most; returns the folder.

    Args:
        folder: is made.
        name: what the config says that the model is called.
    """
    folder.mkdir(parents=True)
    for file in ("model.py", "config.json"):
        text = (utils.examples.path() / file).read_text(encoding="utf-8")
        text = re.sub(r"\b(1024|512|128)\b", lambda match: SIZES[match[1]], text)
        (folder / file).write_text(text, encoding="utf-8")
    return folder


def write_corpus(path: Path, lines: int = 400) -> Path:
    """Write a text file of numbered lines."""
    path.write_text("".join(f"{number} {WORDS}" for number in range(lines)), encoding="utf-8")
    return path
