"""Images → pixels as a model takes them: size, channels, normalisation. Knows arrays, tensors and PIL images, no files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import ConfigError, DataError
from utils.tokenization.samples import Batch, Samples

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel (red, green, blue) of images scaled to 0 … 1; what torchvision's and timm's models are trained with."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601), as PIL takes them."""

IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels")
"""Names under which an example, or a dataset's row, keeps its image and its class."""


class VisionDataCollator:
    """Makes a batch of images: `pixel_values` (B, C, H, W) float32, and `labels` (B,) where the examples have them.

    Takes PIL images, arrays and tensors as (H, W), (H, W, C) or (C, H, W); whole numbers are 0 … 255, floating-point numbers
    0 … 1. Grey becomes colour by repetition, colour becomes grey by its luma, transparency is laid over white. Another size
    is reached by bilinear scaling of the whole image (antialiased; the aspect is not kept).

    Args:
        channels: 3 or 1.
        size: height and width, or one number for both; None keeps the size, which then must be the same in a batch.
        mean, std: per channel; a single value serves all. Grey images take the mean of ImageNet's three.

    Example:
        >>> VisionDataCollator(size=32)([(image, 3), (other, 5)])["pixel_values"].shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        channels: int = 3,
        size: int | tuple[int, int] | None = 224,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
    ) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"channels must be 1 (grey) or 3 (colour); got {channels!r}.")
        self.channels = channels
        self.size = _checked_size(size)
        self.mean = _per_channel(mean, IMAGENET_MEAN, channels, "mean")
        self.std = _per_channel(std, IMAGENET_STD, channels, "std")
        if bool((self.std <= 0).any()):
            raise ConfigError(f"std must be above 0 in every channel; got {self.std.flatten().tolist()}.")

    @classmethod
    def for_shape(cls, shape: tuple[int, int, int] | None) -> VisionDataCollator:
        """The collator of a model that takes images of this shape (channels, height, width); None takes the defaults."""
        return cls() if shape is None else cls(shape[0], shape[1:])

    def __call__(self, examples: Sequence[Any]) -> Batch:
        """A batch of images, (image, class) pairs, or mappings with `image` and `label`.

        Raises:
            DataError: no image, images of different sizes, or labels for some examples only.
        """
        if not examples:
            raise DataError("A batch needs at least one image.")
        parts = [_parts(example) for example in examples]
        pixels = [self.pixels(image, place) for place, (image, _) in enumerate(parts)]
        shapes = {tuple(image.shape) for image in pixels}
        if len(shapes) > 1:
            raise DataError(f"Images of a batch have different sizes {sorted(shapes)}: pass size= to scale them.")
        labels = [label for _, label in parts if label is not None]
        if labels and len(labels) < len(parts):
            raise DataError(f"{len(labels)} of {len(parts)} examples have a label: all need one, or none.")
        batch = {"pixel_values": torch.stack(pixels)}
        return {**batch, "labels": torch.tensor([int(label) for label in labels])} if labels else batch

    def pixels(self, image: Any, place: int = 0) -> torch.Tensor:
        """One image as (C, H, W) float32, scaled and normalised."""
        scaled = self._channels(to_unit(image, place))
        if self.size is not None and tuple(scaled.shape[1:]) != self.size:
            scaled = F.interpolate(scaled[None], self.size, mode="bilinear", antialias=True)[0]
        return (scaled - self.mean) / self.std

    def _channels(self, image: torch.Tensor) -> torch.Tensor:
        """To the wanted number of channels: (C, H, W) with C of 1 to 4 → (channels, H, W)."""
        if image.shape[0] in (2, 4):  # the last channel is opacity
            opacity = image[-1:]
            image = image[:-1] * opacity + (1 - opacity)
        if image.shape[0] == self.channels:
            return image
        if self.channels == 3:
            return image.expand(3, -1, -1)
        return (image * torch.tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)


class Images(Samples):
    """Images with a class each.

    Args:
        images: anything with a length that gives images, or rows with `image`, by number.
        labels: (N,) class numbers.
        collator: makes a batch of them.
    """

    task = "vision"

    def __init__(self, images: Any, labels: Sequence[int] | np.ndarray, collator: VisionDataCollator) -> None:
        self._images, self._labels, self.collator = images, np.asarray(labels, dtype=np.int64), collator
        if len(self._labels) != len(images) or not len(images):
            raise DataError(f"There are {len(images)} images and {len(self._labels)} labels: each image needs one.")
        settings = f"{len(images)}:{getattr(images, '_fingerprint', '')}:{vars(collator)}"
        self.fingerprint = hashlib.sha256(settings.encode() + self._labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """`pixel_values` (B, C, H, W) float32 and `labels` (B,)."""
        return self.collator([(_parts(self._images[int(i)])[0], self._labels[i]) for i in indices])

    def image(self, index: int) -> torch.Tensor:
        """One image as it came, (C, H, W) float32 between 0 and 1."""
        return to_unit(_parts(self._images[index])[0], index)


def labels_of(images: Any) -> Sequence[Any]:
    """The label of each row or pair; names where a dataset knows the names of its classes.

    Raises:
        DataError: an image without a label.
    """
    columns = getattr(images, "column_names", None)
    if columns is not None:
        name = next((key for key in LABEL_KEYS if key in columns), None)
        if name is None:
            raise DataError(
                f"The dataset has the columns {', '.join(columns)} and none named {' or '.join(LABEL_KEYS)}."
            )
        return column_labels(images, name)
    labels = [_parts(images[i])[1] for i in range(len(images))]
    missing = next((place for place, label in enumerate(labels) if label is None), None)
    if missing is not None:
        raise DataError(f"Image {missing} has no label: pass (image, label) pairs, or labels=.")
    return labels


def column_labels(dataset: Any, column: str) -> list[Any]:
    """The labels of a dataset's column, by name where the dataset knows the names; None where there is none.

    A `ClassLabel` marks an example without a label by -1.
    """
    values = list(dataset.select_columns([column])[column])
    names = getattr((getattr(dataset, "features", None) or {}).get(column), "names", None)  # a ClassLabel's
    return values if names is None else [names[value] if value is not None and value >= 0 else None for value in values]


def _parts(example: Any) -> tuple[Any, Any]:
    """Image and label of an example; None where there is no label."""
    if isinstance(example, Mapping):
        image = next((example[key] for key in IMAGE_KEYS if key in example), None)
        if image is None:
            raise DataError(
                f"An example has the keys {', '.join(map(str, example))} and none of {', '.join(IMAGE_KEYS)}."
            )
        return image, next((example[key] for key in LABEL_KEYS if key in example), None)
    if isinstance(example, tuple) and len(example) == 2:
        return example
    return example, None


def to_unit(image: Any, place: int) -> torch.Tensor:
    """An image as (C, H, W) float32 between 0 and 1."""
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # a PIL image
        mode = _pil_mode(image)
        image = np.array(image if mode is None else image.convert(mode))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, torch.Tensor):
        raise DataError(
            f"Image {place} is of type {type(image).__name__}; images are PIL images, arrays or tensors. "
            "Open files first: PIL.Image.open(path)."
        )
    if image.dim() == 2:
        image = image[None]
    image = _channels_first(image, place)
    if image.dtype == torch.uint8:
        return image.float() / 255
    return _checked_values(image, place)


def _pil_mode(image: Any) -> str | None:
    """The plain mode that keeps what the image shows: colour or grey, and transparency where there is some.

    None for whole numbers beyond 255 and floating-point numbers: PIL would cut those off.
    """
    bands = image.getbands()
    if bands[0] in ("I", "F"):
        return None
    clear = "A" in bands or "transparency" in image.info
    if bands[0] in ("L", "1"):
        return "LA" if clear else "L"
    return "RGBA" if clear else "RGB"


def _channels_first(image: torch.Tensor, place: int) -> torch.Tensor:
    """(H, W, C) or (C, H, W) → (C, H, W); the axis of 1 to 4 is that of the channels, the last one where both are."""
    if image.dim() != 3 or 0 in image.shape or not (image.shape[0] <= 4 or image.shape[2] <= 4):
        raise DataError(
            f"Image {place} has the shape {tuple(image.shape)}; expected (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels."
        )
    by_last = image.shape[2] <= 4 and (image.shape[0] > 4 or image.shape[2] in (1, 3))
    return image.permute(2, 0, 1) if by_last else image


def _checked_values(image: torch.Tensor, place: int) -> torch.Tensor:
    whole = not image.is_floating_point() and image.dtype != torch.bool
    values = image.float()
    low, high = float(values.min()), float(values.max())
    most = 255.0 if whole else 1.0
    if not (low >= 0 and high <= most):  # NaN fails too
        raise DataError(
            f"Image {place} holds values from {low:g} to {high:g}; whole numbers go from 0 to 255, floating-point numbers "
            "from 0 to 1. Divide by 255, or pass uint8."
        )
    return values / 255 if whole else values


def _per_channel(
    given: Sequence[float] | float | None, default: Sequence[float], channels: int, what: str
) -> torch.Tensor:
    """(channels, 1, 1)."""
    if given is None:
        values = list(default) if channels == 3 else [sum(default) / 3]
    else:
        values = [float(given)] * channels if isinstance(given, (int, float)) else [float(value) for value in given]
    if len(values) != channels:
        raise ConfigError(f"{what} has {len(values)} values; the images have {channels} channels.")
    return torch.tensor(values).view(channels, 1, 1)


def _checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) and not isinstance(size, bool) else size
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ConfigError(f"size is one whole number, (height, width), or None; got {size!r}.")
    return int(pair[0]), int(pair[1])
