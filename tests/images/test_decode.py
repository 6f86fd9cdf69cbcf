import io
import os

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from elbocli.errors import DataError
from elbocli.images import decode as pixels
from elbocli.images.decode import CROPS, DecodeOptions
from elbocli.images.registry import Span


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# Decoding

GREY = np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)
RGB = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)


def decode(content, channels=3):
    image, change = pixels.decode(content, DecodeOptions(channels=channels))
    return np.asarray(image), change


def test_plain_pixels_come_through_unchanged():
    for array, channels in ((RGB, 3), (GREY, 1)):
        for kind in ("png", "bmp", "tiff"):
            found, change = decode(encoded(Image.fromarray(array), kind), channels)
            np.testing.assert_array_equal(found, array)
            assert change == ""


def test_grey_becomes_three_equal_channels_and_colour_pillows_grey():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(GREY)))[0], np.stack([GREY] * 3, -1))
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(RGB)), 1)[0], np.asarray(Image.fromarray(RGB).convert("L"))
    )


def test_sixteen_bits_are_scaled_by_one_257th():
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1023
    found, change = decode(encoded(Image.fromarray(deep)), 1)
    np.testing.assert_array_equal(found, np.rint(deep / 257).astype(np.uint8))
    assert change == "16-bit scaled"
    exact = (GREY.astype(np.uint16) * 257).astype(np.uint16)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(exact)), 1)[0], GREY)


def test_alpha_is_dropped_not_blended_and_said_so():
    alpha = np.dstack([RGB, np.zeros((8, 8), np.uint8)])
    found, change = decode(encoded(Image.fromarray(alpha)))
    np.testing.assert_array_equal(found, RGB)
    assert change == "alpha dropped"
    found, change = decode(encoded(Image.fromarray(np.dstack([GREY, GREY * 0])), "png"), 1)
    np.testing.assert_array_equal(found, GREY)
    assert change == "alpha dropped"


def test_palettes_and_cmyk_are_converted_and_said_so():
    few = Image.fromarray(RGB // 128 * 255).quantize(8)
    found, change = decode(encoded(few))
    np.testing.assert_array_equal(found, RGB // 128 * 255)
    assert change == "P converted"
    cmyk = Image.fromarray(RGB).convert("CMYK")
    found, change = decode(encoded(cmyk, "tiff"))
    np.testing.assert_array_equal(found, np.asarray(cmyk.convert("RGB")))
    assert change == "CMYK converted"


def test_a_transparent_palette_loses_its_transparency():
    few = Image.fromarray(RGB // 128 * 255).quantize(8)
    found, change = decode(encoded(few, transparency=0))
    np.testing.assert_array_equal(found, RGB // 128 * 255)
    assert change == "alpha dropped"


def test_black_and_white_becomes_0_and_255():
    bits = Image.fromarray(GREY > 127)
    found, change = decode(encoded(bits), 1)
    np.testing.assert_array_equal(found, (GREY > 127) * 255)
    assert change == "1 converted"


def test_the_orientation_tag_is_ignored_as_in_adm():
    tag = Image.Exif()
    tag[0x0112] = 6
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(RGB), exif=tag))[0], RGB)


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="range is not known"):
        decode(encoded(Image.fromarray(GREY.astype(np.float32)), "tiff"))


# Bad images


def chunked_bomb(width, height):
    """A PNG that says it is huge and holds nothing."""
    buffer = io.BytesIO(encoded(Image.new("L", (1, 1))))
    content = bytearray(buffer.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = PngImagePlugin._crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (bytes(1000), "not an image"),
        (encoded(Image.fromarray(RGB))[:60], "does not decode"),
        (encoded(Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)), "jpeg")[:700], "does not decode"),
        (chunked_bomb(100_000, 100_000), "pixels"),
        (chunked_bomb(20_000, 20_000), "pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
)
def test_bad_images_are_refused(content, what):
    with pytest.raises(DataError, match=what):
        pixels.decode(content, DecodeOptions())


def test_no_program_is_run_to_decode_an_image(tmp_path, python):
    """Pillow would hand PostScript to Ghostscript, which is a program in the file's own language."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/proof\n")
    ghostscript.chmod(0o755)
    code = (
        "import os, sys\nos.environ['PATH'] = sys.argv[1] + ':' + os.environ['PATH']\n"
        "from elbocli.errors import DataError\nfrom elbocli.images import decode as pixels\n"
        "text = b'%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 8 8\\n%%EndComments\\nshowpage\\n'\n"
        "try:\n    pixels.decode(text, pixels.DecodeOptions())\nexcept DataError:\n    print('refused')\n"
    )
    assert python(code, tmp_path) == "refused\n"
    assert not (tmp_path / "proof").exists()


def test_every_truncation_of_an_image_is_refused_or_whole():
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff"):
        content = encoded(Image.fromarray(RGB), kind)
        whole = decode(content)[0]
        for size in range(0, len(content), 7):
            try:
                found = decode(content[:size])[0]
            except DataError:
                continue
            np.testing.assert_array_equal(found, whole)


def test_any_flipped_bytes_give_an_image_or_a_data_error():
    random = np.random.default_rng(0)
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff"):
        content = np.frombuffer(encoded(Image.fromarray(RGB), kind), np.uint8)
        for _ in range(150):
            damaged = content.copy()
            damaged[random.integers(0, len(content), 3)] = random.integers(0, 256, 3)
            try:
                image, _ = pixels.decode(damaged.tobytes(), DecodeOptions())
            except DataError:
                continue
            assert image.mode == "RGB"


def test_without_a_crop_only_the_right_size_passes():
    content = encoded(Image.fromarray(RGB))
    np.testing.assert_array_equal(pixels.square(content, DecodeOptions(8, crop="none"))[0], RGB)
    with pytest.raises(DataError, match="8 x 8 pixels, but --crop none takes only those of --size 16"):
        pixels.square(content, DecodeOptions(16, crop="none"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_square_always_has_its_channels(channels):
    for crop in CROPS:
        assert pixels.square(encoded(Image.fromarray(RGB)), DecodeOptions(8, channels, crop))[0].shape == (
            8,
            8,
            channels,
        )


# Files


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert Span(str(tmp_path / "file")).read() == b"abc"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "gone", "."):
        with pytest.raises(DataError):
            Span(str(tmp_path / name)).read()
