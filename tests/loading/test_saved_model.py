"""Folders as `save_pretrained` writes them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from utils.adapters.model_adapter import adapt
from utils.errors import ConfigError, ModelLoadError
from utils.loading.cache import CACHE_VARIABLE
from utils.loading.model_loader import load_model

transformers = pytest.importorskip("transformers")
SIZES = {
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": 31,
    "n_positions": 12,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    """A folder and the model that was saved there."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).eval()
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved", model


def changed(folder: Path, **settings: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), "utf-8")
    return folder


def test_the_weights_are_those_that_were_saved(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    loaded = load_model(folder)
    assert type(loaded.model) is type(model) and loaded.source.class_name == "GPT2LMHeadModel" and loaded.seed is None
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.state_dict().values(), model.state_dict().values()))
    assert loaded.config.vocab_size == 31 and set(loaded.source.sha256) == {"config.json", "model.safetensors"}
    assert loaded.review.findings == () and "holds no code" in loaded.summary()
    ids = torch.randint(31, (2, 7))
    torch.testing.assert_close(adapt(loaded)(ids).logits, model(ids).logits)


def test_a_config_alone_gives_the_same_fresh_weights_each_time(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    (folder / "model.safetensors").unlink()
    one, two = load_model(folder), load_model(folder)
    assert one.seed == 0 and "fresh weights of seed 0" in one.summary()
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters()))


def test_the_class_can_be_chosen_and_is_else_the_base_model(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    assert type(load_model(folder, class_name="GPT2Model").model).__name__ == "GPT2Model"
    assert type(load_model(changed(folder, architectures=None)).model).__name__ == "GPT2Model"


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"architectures": ["NoSuchModel"]}, {}, "no model class 'NoSuchModel'"),
        ({"architectures": ["Trainer"]}, {}, "no model class 'Trainer'"),
        ({"architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}}, {}, "code of its own .auto_map., which is never run"),
        ({"architectures": None, "model_type": "nothing"}, {}, "no model class None"),
        ({}, {"config": {"vocab_size": 5}}, "config= cannot change a saved model"),
        ({}, {"vocab_size": 5}, "vocab_size= cannot change a saved model"),
        ({"n_embd": 17}, {}, "GPT2LMHeadModel cannot be loaded"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_said(saved: tuple[Path, Any], settings: Any, arguments: Any, words: str) -> None:
    folder = changed(saved[0], **settings)
    with pytest.raises(ModelLoadError, match=words):
        load_model(folder, **arguments)


def test_a_hostile_config_is_read_as_strictly_as_any(saved: tuple[Path, Any]) -> None:
    text = (saved[0] / "config.json").read_text("utf-8")
    (saved[0] / "config.json").write_text(
        text.replace('"vocab_size": 31', '"vocab_size": 31, "vocab_size": 32'), "utf-8"
    )
    with pytest.raises(ConfigError, match="'vocab_size' stands twice"):
        load_model(saved[0])


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("CANARY",)


def test_pickled_weights_are_never_read(
    saved: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (saved[0] / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    load_model(saved[0])  # safetensors lie beside it
    (saved[0] / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"pytorch_model.bin, which is not read.*safe_serialization=True"):
        load_model(saved[0])
    assert not (tmp_path / "CANARY").exists()


def test_a_folder_with_code_of_its_own_is_read_and_reviewed(saved: tuple[Path, Any]) -> None:
    (saved[0] / "model.py").write_text("import os\nos.system('x')\n", "utf-8")
    with pytest.raises(ModelLoadError, match=r"os\.system"):
        load_model(saved[0])
