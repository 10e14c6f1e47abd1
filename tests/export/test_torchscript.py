"""TorchScript files say nothing of the machine that wrote them, and torch alone opens them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import utils
from export import zoo
from utils.export.torchscript import TorchScriptExporter


@pytest.mark.parametrize("method", ["trace", "script"])
def test_no_path_of_this_machine_goes_along(method: str, tmp_path: Path) -> None:
    model = zoo.Bigram().eval()
    artifact = TorchScriptExporter.export(model, tmp_path / "model.pt", zoo.CONFIG, method=method)
    assert artifact.parity is not None and artifact.parity.passed
    archive = zipfile.ZipFile(artifact.path)
    home = str(Path(utils.__file__).parents[1]).encode()
    assert not [name for name in archive.namelist() if home in archive.read(name) or name.endswith(".debug_pkl")]
    ids = torch.tensor([[3, 1, 4]])
    extra = {"metadata.json": ""}
    torch.testing.assert_close(torch.jit.load(artifact.path, _extra_files=extra)(input_ids=ids), model(ids))
    assert b"format_version" in extra["metadata.json"]
