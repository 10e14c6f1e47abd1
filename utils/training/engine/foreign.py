"""Checkpoints that this package did not write: tensors only, shapes checked, everything else left where it is.

A file from elsewhere may hold code, paths and settings. Nothing of that is run, followed or obeyed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import CheckpointError
from utils.training.engine.checkpoint import refuse_unsafe_loading

logger = logging.getLogger(__name__)

PLACES = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which others keep weights."""

PREFIXES = ("module.", "_orig_mod.", "adapted.", "model.", "adapted.model.")
"""What others put before the names of weights: wrappers for several devices, compiled models, Lightning modules."""

_SHOWN = 5


def load_foreign(path: str | Path, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of unknown origin, and nothing else of it.

    Args:
        path: a file of `torch.save` or a safetensors file; no URL.
        model: gets the weights, once names and shapes agree; None leaves them to the caller.

    Returns:
        Tensors by name; by the model's names where one was given.

    Raises:
        CheckpointError: no such file, content beyond tensors and plain types, no tensors, names or shapes that differ, or
            TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.
    """
    refuse_unsafe_loading()
    file = Path(path)
    if "://" in str(path):
        raise CheckpointError(f"{path} is a URL. Download it, look at it, and pass the file.")
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint file {file}.")
    weights = _tensors(_content(file), file.name)
    if model is None:
        return weights
    fitting = weights_for(model, weights, file.name)
    model.load_state_dict(fitting)
    return fitting


def weights_for(model: nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The weights by the model's names, once every name and shape agrees.

    Raises:
        CheckpointError: they do not; the message lists what differs.
    """
    wanted = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    renamed = max(_readings(weights), key=lambda reading: len(reading.keys() & wanted.keys()))
    missing, unknown = sorted(wanted.keys() - renamed.keys()), sorted(renamed.keys() - wanted.keys())
    shapes = [
        f"{key}: {tuple(renamed[key].shape)} in the file, {tuple(value.shape)} in the model"
        for key, value in wanted.items()
        if key in renamed and renamed[key].shape != value.shape
    ]
    complaints = [
        f"{what}: {', '.join(keys[:_SHOWN])}{f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("other shapes", shapes))
        if keys
    ]
    if complaints:
        raise CheckpointError(f"The weights in {name} are those of another model. " + "; ".join(complaints) + ".")
    return {key: renamed[key] for key in wanted}


def _content(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{file.name} cannot be read as safetensors: {error}.") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a crafted or torn file makes the reader raise
        raise CheckpointError(
            f"{file.name} holds more than tensors and plain types, or is torn, and is not loaded: {str(error)[:200]}"
        ) from error


def _tensors(content: Any, name: str) -> dict[str, torch.Tensor]:
    """The state dict in what was read."""
    places = [content] if isinstance(content, Mapping) else []
    places += [content[key] for key in PLACES if places and isinstance(content.get(key), Mapping)]
    for place in reversed(places):
        found = {key: value for key, value in place.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
        if found:
            dropped = sorted(str(key) for key in content if key not in PLACES and key not in found)
            if dropped:
                logger.info("of %s only weights are taken; left out: %s", name, ", ".join(dropped))
            return found
    raise CheckpointError(f"{name} holds no weights: looked for tensors at its top and under {', '.join(PLACES)}.")


def _readings(weights: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The weights as they are named, and without or with each prefix that wrappers add."""
    found = [dict(weights)]
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            found.append({key.removeprefix(prefix): value for key, value in weights.items()})
        found.append({prefix + key: value for key, value in weights.items()})
    return found
