"""Formats that another process decodes: the same pixels, and bounds that hold."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from elbocli.errors import DataError
from elbocli.images import decode_apart as apart
from elbocli.images.decode import DecodeOptions, decode

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
ALPHA = np.dstack([RGB, RGB[..., :1]])


def encoded(pixels, kind, **how):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


CASES = {
    "JPEG2000 in colour": (encoded(RGB, "jpeg2000"), "JPEG2000"),
    "JPEG2000, grey": (encoded(RGB[..., 0], "jpeg2000"), "JPEG2000"),
    "JPEG2000 with alpha": (encoded(ALPHA, "jpeg2000"), "JPEG2000"),
    "JPEG2000 of 16 bits": (encoded(RGB[..., 0].astype(np.uint16) * 257, "jpeg2000"), "JPEG2000"),
    "AVIF": (encoded(RGB, "avif", speed=10), "AVIF"),
    "AVIF with alpha": (encoded(ALPHA, "avif", speed=10), "AVIF"),
}


@pytest.mark.parametrize(("content", "kind"), CASES.values(), ids=CASES)
def test_the_image_is_as_pillow_decodes_it(content, kind):
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        found = apart.decode_apart(content, kind)
        assert (found.mode, found.size, found.tobytes()) == (image.mode, image.size, image.tobytes())
        expected = image.convert("RGB").tobytes() if not image.mode.startswith("I") else found and None
    decoded, _ = decode(content, 3)
    assert expected in (None, decoded.tobytes())


def test_an_image_is_turned_as_it_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(RGB, "avif", speed=10, exif=exif)
    found, change = decode(content, 3, DecodeOptions(0, auto_orient=True))
    assert found.size == (24, 40) and change == "turned"


def test_a_damaged_image_is_refused_and_the_next_one_is_decoded():
    content = CASES["AVIF"][0]
    for damaged in (content[: len(content) // 2], content[:40]):
        with pytest.raises(DataError, match="does not decode"):
            apart.decode_apart(damaged, "AVIF")
    assert apart.decode_apart(content, "AVIF").size == (40, 24)


def test_a_decoder_that_ends_or_hangs_is_one_of_the_image(monkeypatch):
    content = CASES["JPEG2000, grey"][0]
    apart.decode_apart(content, "JPEG2000")
    first = apart._process()
    os.kill(first.pid, 19)  # SIGSTOP
    monkeypatch.setattr(apart, "PATIENCE_S", 0.2)
    with pytest.raises(DataError, match=r"takes more than 0\.2 s"):
        apart.decode_apart(content, "JPEG2000")
    assert first.poll() is not None
    monkeypatch.undo()
    apart._process().kill()
    apart._process().wait()
    assert apart.decode_apart(content, "JPEG2000").mode == "L"


def test_a_decoder_takes_no_more_memory_than_it_may(monkeypatch):
    monkeypatch.setattr(
        apart,
        "CODE",
        apart.CODE.replace("; ", "; import elbocli.images.decode_apart as a; a.LARGEST_PROCESS = 64 << 20; "),
    )
    content = encoded(np.zeros((6000, 6000, 3), np.uint8), "jpeg2000")
    said = []

    def work():
        try:
            apart.decode_apart(content, "JPEG2000")
        except DataError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)  # whose process is a new one
    thread.start()
    thread.join()
    assert len(said) == 1 and "does not decode" in said[0]


def test_an_image_of_another_size_than_it_says_is_refused():
    content = bytearray(encoded(np.zeros((600, 600, 3), np.uint8), "jpeg2000"))
    at = content.index(b"ihdr") + 4
    content[at : at + 8] = b"\0\0\0\x40\0\0\0\x40"
    with pytest.raises(DataError, match="does not decode"):
        decode(bytes(content), 3)
