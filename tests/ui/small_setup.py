"""A wizard's decisions over a tiny model and text, with nothing left to load: the first three steps are stand-ins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.training.tiny import TEXT, TinyTransformer, make_tiny
from utils.training.dataset_utilities import DatasetLoader
from utils.ui.decisions.setup import Setup

LINES = [line for line in TEXT.splitlines() if line]


class DoneValidation:
    """Step 1 after its checks."""

    def __init__(self, adapted: Any) -> None:
        self.adapted = adapted
        self.form = SimpleNamespace(identity="tiny", mended=False, verdict="All checks passed.", passed=True)
        self.problem = lambda: ""

    def prepare(self) -> Any:
        return self.adapted


class DoneData:
    """Step 2 after reading."""

    def __init__(self, texts: Any) -> None:
        self.loaded = DatasetLoader.from_anything(texts, progress=False)
        self.is_read, self.form = True, SimpleNamespace(kind="given")
        self.task, self.missing, self.problem = "lm", lambda: "", lambda: ""

    def prepare(self, ticket: Any) -> Any:
        return self.loaded

    def for_training(self) -> Any:
        return self.loaded


class DoneTokenizer:
    """Step 3 after making."""

    def __init__(self, tokenizer: Any) -> None:
        self.made, self.not_needed = tokenizer, ""
        self.missing = lambda: ""

    def prepare(self, ticket: Any) -> Any:
        return self.made


def small_setup(folder: Path, tokenizer: Any = None, texts: Any = tuple(LINES), seed: int = 0, **given: Any) -> Setup:
    """The decisions, with steps 1 to 3 done."""
    setup = Setup(TinyTransformer(), folder=folder / "wizard", **given)
    adapted = make_tiny(seed)
    vars(setup).update(
        validation=DoneValidation(adapted), dataset=DoneData(list(texts)), tokenizer=DoneTokenizer(tokenizer)
    )
    return setup
