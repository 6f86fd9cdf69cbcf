"""Decoding and crops: each crop has the pixels of its definition, at any shape, and damage is a DataError."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from elbocli.data.decode import CROPS, decode, square
from elbocli.data.settings import DecodeOptions
from elbocli.errors import DataError

skimage = pytest.importorskip("skimage", reason="its photographs are needed")
PHOTOGRAPHS = [
    path
    for module in (sklearn, skimage, matplotlib)
    for path in sorted(Path(module.__file__).parent.rglob("*"))
    if path.suffix in (".png", ".jpg", ".jpeg") and path.stat().st_size > 15_000
]
BICUBIC = Image.Resampling.BICUBIC
BOX = Image.Resampling.BOX
LANCZOS = Image.Resampling.LANCZOS
RGB = np.random.default_rng(2).integers(0, 256, (200, 300, 3), np.uint8)
PICTURE = Image.fromarray(RGB)


def adm(image, size):
    """ADM's centre crop, as its definition says: BOX to half while the short side is at least twice too long, then
    bicubic to the short side, then the middle."""
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=BOX)
    scale = size / min(image.size)
    array = np.array(image.resize(tuple(round(side * scale) for side in image.size), resample=BICUBIC))
    top = (array.shape[0] - size) // 2
    left = (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_packed_photographs_are_adms_bit_for_bit(path):
    content = path.read_bytes()
    image, _ = decode(content, DecodeOptions())
    for size in (64, 256):
        np.testing.assert_array_equal(square(content, DecodeOptions(size))[0], adm(image, size))


SIDES = st.integers(1, 240)


@given(SIDES, SIDES, st.sampled_from([8, 16, 64]), st.sampled_from(["RGB", "L"]), st.integers(0, 99))
def test_the_centre_crop_is_adms_at_any_shape(width, height, size, mode, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    np.testing.assert_array_equal(np.asarray(CROPS["center"][0](image, size)), adm(image, size))


@pytest.mark.parametrize(("crop", "box"), [("edm", (50, 0, 250, 200)), ("resize", (0, 0, 300, 200))])
def test_the_middle_square_or_the_whole_is_resized_by_lanczos(crop, box):
    expected = np.asarray(PICTURE.crop(box).resize((64, 64), LANCZOS))
    np.testing.assert_array_equal(square(RGB, DecodeOptions(64, crop=crop))[0], expected)


@pytest.mark.parametrize(("crop", "shape"), [("center", (1, 30_000)), ("none", (64, 65))])
def test_images_that_a_crop_does_not_take_are_refused(crop, shape):
    with pytest.raises(DataError, match=f"{shape[0]} x|too long"):
        CROPS[crop][0](Image.new("L", shape), 64)


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def test_sixteen_bits_are_scaled_by_one_257th():
    deep = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    image, change = decode(encoded(deep), DecodeOptions(channels=1))
    np.testing.assert_array_equal(np.asarray(image), np.rint(deep / 257))
    assert change == "16-bit scaled"


def test_colours_are_told_where_grey_is_expected():
    told = [decode(encoded(RGB), DecodeOptions(channels=1, grey_expected=expected))[1] for expected in (False, True)]
    assert told == ["", "colour made grey"] and decode(encoded(RGB), DecodeOptions())[1] == ""


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_a_damaged_image_is_refused_or_decoded_and_a_cut_one_is_refused_or_whole(kind):
    content = encoded(RGB[:8, :8], kind)
    random = np.random.default_rng(0)
    whole = np.asarray(decode(content, DecodeOptions())[0])
    for size in range(0, len(content), 7):
        try:
            found, _ = decode(content[:size], DecodeOptions())
        except DataError:
            continue
        np.testing.assert_array_equal(np.asarray(found), whole)
    for _ in range(150):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[random.integers(0, len(content), 3)] = random.integers(0, 256, 3)
        try:
            assert decode(damaged.tobytes(), DecodeOptions())[0].mode == "RGB"
        except DataError:
            continue
