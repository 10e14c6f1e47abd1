"""The script that gives a trained model back: what it needs, and what is written into it. The demo's test runs it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from export import zoo
from utils.adapters.model_adapter import AdaptedModel, adapt
from utils.errors import ExportError
from utils.export.rebuild import write_rebuild


def test_a_model_without_source_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "x.ckpt")
    with pytest.raises(ExportError, match="has no source that could be written"):
        write_rebuild(AdaptedModel(zoo.Bigram(), zoo.CONFIG), tmp_path / "x.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_from_outside_are_written_as_literals(tmp_path: Path) -> None:
    adapted = adapt(zoo.Bigram(), zoo.CONFIG)
    checkpoint = tmp_path / "run" / 'a "quoted"; import os\n.ckpt'
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    model, config, script = write_rebuild(adapted, checkpoint, tmp_path / "run")
    tree = ast.parse(script.read_text("utf-8"))
    (value,) = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "CHECKPOINT"
    ]
    assert isinstance(value, ast.BinOp) and ast.literal_eval(value.right) == checkpoint.name
    assert model.name == "model.py" and "class Bigram" in model.read_text("utf-8")
    assert '"max_seq_len": 32' in config.read_text("utf-8")
