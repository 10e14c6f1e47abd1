from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.errors import ConfigError, DataError
from utils.tokenization.vision import IMAGENET_MEAN, IMAGENET_STD, Images, VisionDataCollator, labels_of

Image = pytest.importorskip("PIL.Image")
MEAN, STD = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
EXPECTED = (torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255 - MEAN) / STD
GREY = PIXELS[:, :, 0]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS.astype(np.int64),
        PIXELS.astype(np.float32) / 255,
        (PIXELS / 255).transpose(2, 0, 1),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
        np.asfortranarray(PIXELS)[:, ::1],
        np.concatenate([PIXELS, np.full((6, 8, 1), 255, np.uint8)], axis=2),
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
)
def test_every_form_of_an_image_gives_the_same_pixels(image):
    batch = VisionDataCollator(size=None)([image])
    assert batch["pixel_values"].dtype == torch.float32 and set(batch) == {"pixel_values"}
    torch.testing.assert_close(batch["pixel_values"][0], EXPECTED, atol=1e-6, rtol=0)


@pytest.mark.parametrize("image", [Image.fromarray(GREY), GREY, GREY[None], GREY[:, :, None], torch.from_numpy(GREY)])
def test_grey_becomes_colour_by_repetition(image):
    found = VisionDataCollator(size=None)([image])["pixel_values"][0]
    unit = torch.from_numpy(GREY).float() / 255
    torch.testing.assert_close(found, (unit.expand(3, -1, -1) - MEAN) / STD)


def test_colour_becomes_grey_by_its_luma():
    found = VisionDataCollator(channels=1, size=None, mean=0.0, std=1.0)([PIXELS])["pixel_values"][0, 0]
    by_pil = np.asarray(Image.fromarray(PIXELS).convert("L")) / 255
    assert np.abs(found.numpy() - by_pil).max() <= 0.5 / 255 + 1e-6  # PIL rounds to whole numbers


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pil_gives_a_batch(mode, channels):
    image = Image.fromarray(PIXELS).convert(mode)
    found = VisionDataCollator(channels, size=4)([image])["pixel_values"]
    assert found.shape == (1, channels, 4, 4) and torch.isfinite(found).all()


def test_transparency_is_laid_over_white():
    clear = np.zeros((2, 2, 4), np.uint8)
    assert VisionDataCollator(size=None, mean=0.0, std=1.0)([clear])["pixel_values"].eq(1).all()
    palette = Image.fromarray(np.zeros((2, 2), np.uint8)).convert("P")
    palette.info["transparency"] = 0
    assert VisionDataCollator(size=None, mean=0.0, std=1.0)([palette])["pixel_values"].eq(1).all()


def test_images_are_scaled_to_one_size():
    others = [PIXELS, np.full((30, 20), 128, np.uint8), torch.full((3, 5, 5), 0.25)]
    batch = VisionDataCollator(size=(10, 12))(list(zip(others, [2, 0, 1])))
    assert batch["pixel_values"].shape == (3, 3, 10, 12) and batch["labels"].tolist() == [2, 0, 1]
    torch.testing.assert_close(batch["pixel_values"][2], ((torch.tensor(0.25) - MEAN) / STD).expand(-1, 10, 12))


@pytest.mark.parametrize("example", [{"image": PIXELS, "label": 4}, {"img": PIXELS, "labels": 4}, (PIXELS, 4)])
def test_examples_bring_their_label(example):
    assert VisionDataCollator()([example])["labels"].tolist() == [4]


def test_documented_defaults():
    assert VisionDataCollator()([PIXELS])["pixel_values"].shape == (1, 3, 224, 224)
    grey = VisionDataCollator(channels=1)
    assert grey.mean.item() == pytest.approx(np.mean(IMAGENET_MEAN))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "at least one image"),
        (["a.png"], "Image 0 is of type str.*PIL.Image.open"),
        ([np.zeros((9, 9, 9), np.uint8)], r"Image 0 has the shape \(9, 9, 9\)"),
        ([np.zeros(5, np.uint8)], r"shape \(5,\)"),
        ([np.zeros((0, 5, 3), np.uint8)], r"shape \(0, 5, 3\)"),
        ([PIXELS.astype(np.float32)], "values from 0 to 2.*numbers from 0 to 1. Divide by 255"),
        ([np.full((4, 4), np.nan)], "values from nan to nan"),
        ([PIXELS.astype(np.int32) - 300], "values from -300"),
        ([Image.fromarray(np.full((4, 4), 900, np.uint16))], "to 900; whole numbers go from 0 to 255"),
        ([{"picture": PIXELS}], "keys picture and none of image"),
        ([(PIXELS, 1), PIXELS], "1 of 2 examples have a label"),
    ],
)
def test_what_is_no_image_is_refused(examples, message):
    with pytest.raises(DataError, match=message):
        VisionDataCollator()(examples)


def test_other_sizes_without_scaling_are_refused():
    with pytest.raises(DataError, match=r"different sizes.*pass size="):
        VisionDataCollator(size=None)([PIXELS, PIXELS[:4]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 4}, "channels must be 1"),
        ({"size": 0}, "size is one whole number"),
        ({"size": (3,)}, "size is one whole number"),
        ({"mean": (0.5,)}, "mean has 1 values; the images have 3"),
        ({"std": 0.0}, "std must be above 0"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        VisionDataCollator(**arguments)


def test_images_of_a_dataset_come_with_their_classes():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(PIXELS)] * 3, "label": [1, 0, 1]}, features=features)
    assert labels_of(rows) == ["dog", "cat", "dog"]
    batch = Images(rows, [1, 0, 1], VisionDataCollator(size=None)).__getitems__([0, 2])
    torch.testing.assert_close(batch["pixel_values"][1], EXPECTED)
    assert batch["labels"].tolist() == [1, 1]


def test_an_image_without_a_label_is_named():
    with pytest.raises(DataError, match="Image 1 has no label"):
        labels_of([(PIXELS, 0), PIXELS])
