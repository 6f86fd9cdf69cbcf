"""Crops against their definitions, on photographs that libraries ship and on every parity of sides."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from elbocli.images.decode import BOX, CROPS, DecodeOptions, decode, halve, square

skimage = pytest.importorskip("skimage", reason="its photographs are needed")
SUFFIXES = (".png", ".jpg", ".jpeg")
PHOTOGRAPHS = [
    path
    for module in (sklearn, skimage, matplotlib)
    for path in sorted(Path(module.__file__).parent.rglob("*"))
    if path.suffix in SUFFIXES and path.stat().st_size > 15_000
]


def adm(image, size):
    """ADM's centre crop, as its definition says: BOX to half while the short side is at least twice too long, then
    bicubic to the short side, then the middle."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def test_the_photographs_are_many_and_of_mixed_sizes():
    sizes = set()
    for path in PHOTOGRAPHS:
        with Image.open(path) as image:
            sizes.add(image.size)
    assert len(PHOTOGRAPHS) >= 20 and len(sizes) >= 12
    assert any(width > height for width, height in sizes) and any(height > width for width, height in sizes)


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_packed_photographs_are_adms_bit_for_bit(path, size):
    found, _ = square(path.read_bytes(), DecodeOptions(size))
    image = decode(path.read_bytes(), DecodeOptions(channels=3))[0]
    np.testing.assert_array_equal(found, adm(image, size))
    with Image.open(path) as opened:
        if opened.mode == "RGB":
            np.testing.assert_array_equal(found, adm(opened.convert("RGB"), size))


def center_crop(image, size):
    pixels = np.asarray(CROPS["center"][0](image, size))
    return pixels[..., None] if pixels.ndim == 2 else pixels


@pytest.mark.parametrize(
    "shape", [(1, 1), (63, 64), (64, 64), (65, 127), (128, 128), (129, 255), (300, 64), (64, 640), (20, 33)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_centre_crop_is_adms_at_any_shape(shape, channels):
    array = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    np.testing.assert_array_equal(center_crop(image, 64), adm(image, 64).reshape(64, 64, channels))


def test_halving_by_box_is_the_mean_of_four_rounded_twice():
    array = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    halved = array.reshape(64, 2, 64, 2, 3).astype(np.float64).mean((1, 3))
    found = center_crop(Image.fromarray(array), 64)
    assert np.abs(found - halved).max() <= 1


def test_the_crop_is_from_the_middle():
    array = np.zeros((64, 192, 3), np.uint8)
    array[:, 64:128] = 200
    assert (center_crop(Image.fromarray(array), 64) == 200).all()


@given(st.integers(2, 240), st.integers(2, 240), st.sampled_from(["RGB", "L"]), st.integers(0, 2**32 - 1))
def test_halving_is_pillows_box_at_any_shape(width, height, mode, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    expected = image.resize((width // 2, height // 2), BOX)
    np.testing.assert_array_equal(np.asarray(halve(image)), np.asarray(expected))


def photograph(width, height):
    with Image.open(PHOTOGRAPHS[0]) as image:
        return image.convert("RGB").resize((width, height))


def test_edms_crop_is_the_middle_square_then_lanczos():
    image = photograph(300, 200)
    array = np.asarray(image)[:, 50:250]
    expected = np.asarray(Image.fromarray(array).resize((64, 64), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(np.asarray(CROPS["edm"][0](image, 64)), expected)


def test_resize_keeps_everything():
    image = photograph(300, 200)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(np.asarray(CROPS["resize"][0](image, 64)), expected)


@pytest.mark.parametrize(("shape", "inner"), [((300, 200), (64, 43)), ((200, 300), (43, 64)), ((10, 900), (1, 64))])
def test_pad_keeps_proportions_between_bars(shape, inner):
    image = photograph(*shape)
    found = np.asarray(CROPS["pad"][0](image, 64, (10, 20, 30)))
    left, top = (64 - inner[0]) // 2, (64 - inner[1]) // 2
    middle = found[top : top + inner[1], left : left + inner[0]]
    np.testing.assert_array_equal(middle, np.asarray(image.resize(inner, Image.Resampling.LANCZOS)))
    bars = np.ones((64, 64), bool)
    bars[top : top + inner[1], left : left + inner[0]] = False
    assert (found[bars] == (10, 20, 30)).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CROPS)
def test_every_crop_gives_the_square_asked_for(name, channels):
    how = DecodeOptions(48, channels, name, background="#102030")
    image = np.asarray(photograph(48, 48) if name == "none" else photograph(130, 77))
    found, _ = square(image, how)
    assert found.shape == (48, 48, channels) and found.dtype == np.uint8
