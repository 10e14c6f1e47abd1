"""The process behind `isolated`: reads the model once, then runs the checks that it is asked for, one line each."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from pathlib import Path

import torch

from utils.checks.limits import Limits


def main(home: str) -> None:
    """Answer orders from standard input until it is closed.

    Args:
        home: folder with `model.pickle`; `ready.json` is written there once the model has been read.
    """
    folder = Path(home)
    with (folder / "model.pickle").open("rb") as file:
        settings = pickle.load(file)
        sys.path.extend(entry for entry in settings["path"] if entry not in sys.path)
        torch.set_num_threads(settings["threads"])
        adapted, sampler = pickle.load(file)
    _put(folder / "ready.json", b"{}")
    for line in sys.stdin:
        order = json.loads(line)
        check = getattr(importlib.import_module(order["module"]), order["check"])
        result = check(adapted, sampler, Limits(order["seconds"], order["bytes"]))
        _put(Path(order["answer"]), pickle.dumps(result))


def _put(path: Path, content: bytes) -> None:
    """Write a file that is whole as soon as it is there."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    os.replace(beside, path)
