"""Folders that transformers wrote: config.json with `model_type`, weights as safetensors, no code of their own.

The code is that of the installed transformers; remote code is never run, and pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from utils._extras import is_installed
from utils.errors import ModelLoadError
from utils.loading.strict_json import parse_json

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


@dataclass(frozen=True)
class SavedModel:
    """A folder of transformers, not loaded yet.

    Attributes:
        folder: where it lies.
        class_name: class of transformers that is to be built.
        class_text: source of the file that defines the class.
        class_file: name of that file.
        weights: name of the file with the weights; None for a config alone, which gives fresh weights.
    """

    folder: Path
    class_name: str
    class_text: str
    class_file: str
    weights: str | None

    def sha256(self) -> dict[str, str]:
        """File name → SHA-256 of what was read; of weights in several files, that of their index."""
        names = ["config.json", *([self.weights] if self.weights else [])]
        return {name: _digest(self.folder / name) for name in names}

    def build(self) -> nn.Module:
        """The model with the weights of the folder, in eval mode as transformers gives it.

        Raises:
            Exception: whatever transformers raises.
        """
        import transformers

        cls = getattr(transformers, self.class_name)
        if self.weights is None:
            config = transformers.AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            return cls(config)
        model: nn.Module = cls.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
        return model


def is_saved_model(folder: Path, config_text: str | None) -> bool:
    """Whether a folder without Python files is one of transformers: its config.json names a `model_type`."""
    if config_text is None or any(folder.glob("*.py")):
        return False
    return '"model_type"' in config_text and isinstance(parse_json(config_text, "config.json"), dict)


def read_saved_model(folder: Path, config_text: str, class_name: str | None = None) -> SavedModel:
    """Find out what the folder holds, without reading its weights.

    Args:
        folder: as `save_pretrained` wrote it.
        config_text: text of its config.json.
        class_name: the class to build; by default the one in "architectures", else the base model of "model_type".

    Raises:
        ModelLoadError: transformers is not installed or does not know the class, or the weights are pickled.
    """
    if not is_installed("transformers"):
        raise ModelLoadError(f"{folder} was written by transformers, which is not installed: pip install transformers.")
    import transformers

    raw: dict[str, Any] = parse_json(config_text, "config.json")
    name = class_name or next(iter(raw.get("architectures") or ()), None) or _base_class(raw)
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(name, str) or not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        remote = " Its config names code of its own (auto_map), which is never run." if "auto_map" in raw else ""
        raise ModelLoadError(
            f"transformers {transformers.__version__} has no model class {name!r}, which config.json of {folder} asks for."
            f"{remote} Say which to build: load_model(..., class_name='GPT2LMHeadModel')."
        )
    module = sys.modules[cls.__module__]
    return SavedModel(
        folder, name, inspect.getsource(module), Path(str(module.__file__)).name, _weights_of(folder)
    )  # fmt: skip


def _base_class(raw: dict[str, Any]) -> str | None:
    """The base model of a config that names no class."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found = MODEL_MAPPING_NAMES.get(str(raw.get("model_type")))
    return found if isinstance(found, str) or found is None else found[0]


def _weights_of(folder: Path) -> str | None:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return name
    pickled = next((name for name in _PICKLED if (folder / name).is_file()), None)
    if pickled is not None:
        raise ModelLoadError(
            f"{folder} keeps its weights in {pickled}, which is not read: such a file can run code, or belongs to another "
            "library. Save them as safetensors: model.save_pretrained(folder, safe_serialization=True)."
        )
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
