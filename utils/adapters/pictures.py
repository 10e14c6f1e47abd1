"""Which sizes of pictures a vision model may take, from its config and its modules. Asks the model nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from utils.loading.model_config import ModelConfig

_SIZES = (32, 28, 8, 16, 64, 224, 24, 48, 96, 14, 128, 256)
"""Sides of pictures in usual data sets, tried where nothing says the size."""

_ANY = range(4, 65)
"""Sides tried at last, for convolutions whose next layer takes one size only."""

_SMALLEST = 8
"""Side from which on a row of numbers counts as a picture where no name says so: fewer are rather features of a table."""

_NAMES = ("image_size", "img_size", "input_size", "img_dim", "resolution")


def image_shapes(model: nn.Module, config: ModelConfig, named: bool) -> Iterator[tuple[int, int, int]]:
    """(channels, height, width) worth trying, the likeliest first: stated, told by places of patches, usual.

    Args:
        model: a model that may take pictures.
        config: may state the size.
        named: whether the name of the argument says that it takes pictures.
    """
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    first = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    stated = _stated(model, config)
    channels = getattr(config, "num_channels", None) or (convolution.in_channels if convolution is not None else None)
    told = list(_told_by_patches(model, convolution, first, channels))
    shapes = [(channels or 3, height, width) for height, width in stated]
    shapes += told
    if stated or told or convolution is not None:
        shapes += [(channels or 3, size, size) for size in _SIZES]
    if convolution is not None:
        shapes += [(channels or 3, size, size) for size in _ANY]
    if first is not None and convolution is None:
        roots = [(c, side) for c in (1, 3) if (side := _root(first.in_features, c)) is not None]
        shapes += [(c, side, side) for c, side in roots if named or side >= _SMALLEST]
    yield from dict.fromkeys(shapes)


def states_size(model: nn.Module, config: ModelConfig) -> bool:
    """Whether the config or a module names the size of a picture; else the usual sizes were tried, the first that runs."""
    return bool(_stated(model, config))


def _stated(model: nn.Module, config: ModelConfig) -> list[tuple[int, int]]:
    holders = (config, *model.modules())
    size = next((v for h in holders for n in _NAMES if (v := _own(h, n)) is not None), None)
    if isinstance(size, int):
        return [(size, size)]
    return [(int(size[-2]), int(size[-1]))] if isinstance(size, (tuple, list)) and len(size) >= 2 else []


def _told_by_patches(
    model: nn.Module, convolution: nn.Conv2d | None, first: nn.Linear | None, channels: int | None
) -> Iterator[tuple[int, int, int]]:
    """Shapes whose number of patches equals that of the learned places, with or without a token for the class."""
    if convolution is not None:
        patches = [(channels or convolution.in_channels, int(convolution.stride[0]))]
    else:
        patches = [
            (c, side) for c in (3, 1, 4) if first is not None and (side := _root(first.in_features, c)) is not None
        ]
    for places in sorted({p.shape[1] for p in model.parameters() if p.dim() == 3 and p.shape[0] == 1}, reverse=True):
        for count in (places, places - 1, places - 2):
            root = math.isqrt(max(0, count))
            if root > 1 and root * root == count:
                yield from ((c, root * side, root * side) for c, side in patches if side > 1)


def _root(features: int, channels: int) -> int | None:
    """Side of a square of this many numbers in so many channels; None where there is none."""
    side = math.isqrt(features // channels)
    return side if side > 0 and channels * side * side == features else None


def _own(holder: object, name: str) -> Any:
    """A plain attribute; None where it is absent or no size."""
    value = getattr(holder, name, None)
    return value if isinstance(value, (int, tuple, list)) and not isinstance(value, bool) else None
