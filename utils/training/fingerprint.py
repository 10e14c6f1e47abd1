"""Which model this is: hashes of its parameters' shapes, its code, how it is called, and its weights. Decides nothing."""

from __future__ import annotations

import hashlib
import json

import torch

from utils.adapters.model_adapter import AdaptedModel


def model_identity(adapted: AdaptedModel) -> dict[str, str]:
    """SHA-256 of what makes a model another one.

    Returns:
        Those of `structure_identity`, and "weights": names and values.
    """
    return {**structure_identity(adapted), "weights": weights_hash(adapted)}


def structure_identity(adapted: AdaptedModel) -> dict[str, str]:
    """SHA-256 of what stays the same while a model learns.

    Returns:
        "shapes": names and shapes of parameters and buffers; "code": the source that runs, or the class's qualified name
        where no source is known; "contract": how the model is called.
    """
    shapes = [[name, list(value.shape)] for name, value in _tensors(adapted)]
    kind = type(adapted.model)
    code = adapted.completion.source_after or f"{kind.__module__}.{kind.__qualname__}"
    contract = json.loads(adapted.contract.to_json())
    contract.pop("reasons", None)  # words about how a point was found, not the point
    return {
        "shapes": _sha256(json.dumps(shapes)),
        "code": _sha256(code),
        "contract": _sha256(json.dumps(contract, sort_keys=True)),
    }


def weights_hash(adapted: AdaptedModel) -> str:
    """SHA-256 over names, dtypes and values of all parameters and buffers, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in _tensors(adapted):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(adapted: AdaptedModel) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in adapted.state_dict().items() if isinstance(value, torch.Tensor)]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
