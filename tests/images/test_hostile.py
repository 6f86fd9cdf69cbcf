"""Damaged sources of every kind: only what a person can understand may come out."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files.dataset_block import plain
from elbocli.files.dataset_writer import open_writer
from elbocli.images import decode as pixels
from elbocli.images.crops import CROPS
from elbocli.images.sources import open_source

ROWS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


def png(index):
    buffer = io.BytesIO()
    Image.fromarray(ROWS[index]).save(buffer, "png")
    return buffer.getvalue()


def zipped(method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for index in range(4):
            made.writestr(f"{index % 2}/{index}.png", png(index))
    return buffer.getvalue()


def tarred(form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for index in range(4):
            info = tarfile.TarInfo("long/" * 30 + f"{index % 2}/{index}.png")
            info.size = len(png(index))
            made.addfile(info, io.BytesIO(png(index)))
    return buffer.getvalue()


def saved(save, *args, **kwargs):
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


SOURCES = {
    "tar": lambda: tarred(tarfile.GNU_FORMAT),
    "pax": lambda: tarred(tarfile.PAX_FORMAT),
    "stored": lambda: zipped(zipfile.ZIP_STORED),
    "deflated": lambda: zipped(zipfile.ZIP_DEFLATED),
    "lzma": lambda: zipped(zipfile.ZIP_LZMA),
    "npz": lambda: saved(np.savez, arr_0=ROWS, arr_1=np.arange(4)),
    "packed npz": lambda: saved(np.savez_compressed, arr_0=ROWS, arr_1=np.arange(4)),
    "npy": lambda: saved(np.save, ROWS),
}


def damaged(content, random):
    """A few bytes changed, mostly in the first or last ones, where the headers are; or cut short."""
    changed = bytearray(content)
    if random.random() < 0.15:
        return bytes(changed[: random.integers(len(changed))])
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(min(len(changed), 2048) if random.random() < 0.5 else len(changed)))
        changed[-1 - place if random.random() < 0.3 else place] = random.choice([0, 255, random.integers(256)])
    return bytes(changed)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_damaged_source_gives_images_or_an_error_for_people(kind, tmp_path, within):
    content, random, path = SOURCES[kind](), np.random.default_rng(0), tmp_path / "source"
    with within(20):
        for _ in range(60):
            path.write_bytes(damaged(content, random))
            try:
                source = open_source(path, complain=lambda trouble: None)
            except ElboError as error:
                assert str(path) in str(error)
                continue
            for ref in source.refs:
                try:
                    found = ref.read()
                except ElboError:
                    continue
                assert isinstance(found, (bytes, np.ndarray))


def test_an_array_that_announces_more_than_its_file_can_hold_is_refused(tmp_path):
    header = np.lib.format
    buffer = io.BytesIO()
    header.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1, 1, 1)})
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("arr_0.npy", buffer.getvalue() + bytes(1000))
    content = path.read_bytes()
    start = content.rindex(b"PK\1\2") + 24
    path.write_bytes(content[:start] + (1 << 31).to_bytes(4, "little") + content[start + 4 :])
    with pytest.raises(FormatError, match=r"a\.npz: damaged"):
        open_source(path)


@pytest.mark.parametrize("label", [-1, 999_999_999, 2**62])
def test_a_label_that_cannot_be_is_refused_before_its_classes_are_listed(label, tmp_path, within):
    np.savez(tmp_path / "a.npz", arr_0=ROWS, arr_1=np.array([0, 1, 2, label]))
    with within(2), pytest.raises(DataError, match=f"class {label}, which can't be"):
        open_source(tmp_path / "a.npz")


def test_names_with_nul_can_be_stored(tmp_path):
    from elbocli.images.labels import utf8

    with open_writer(tmp_path / "a.h5", plain((8, 8, 3)), 1, "") as writer:
        writer.append(ROWS[:1], 1, {})
        writer.finish(
            {"labels": np.zeros(1, np.int64)}, {"files": [utf8("a\0b")], "class_names": ["x"]}, {"num_classes": 1}
        )
    (tmp_path / "a.h5").unlink()


# Pixels


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "LA",
        "PA",
        "RGBX",
        "RGBa",
        "I;16",
        "I;16L",
        "I;16B",
        "I;16N",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("background", ["", "white"])
def test_every_mode_of_pillow_becomes_grey_or_colour(mode, channels, background):
    image = Image.frombytes(
        mode, (16, 12), np.random.default_rng(0).bytes(16 * 12 * 8)[: len(Image.new(mode, (16, 12)).tobytes())]
    )
    if mode == "I":
        image = Image.fromarray(np.arange(192, dtype=np.int32).reshape(12, 16) * 341)
    how = pixels.DecodeOptions(8, channels, background=background)
    plain, change = pixels._plain(image, how)
    assert plain.mode == pixels.MODES[channels]
    assert (change == []) == (mode in ("L", "RGB"))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparency_beside_the_pixels_is_dropped_and_the_colours_stay(mode):
    image = Image.fromarray(ROWS[0]).convert(mode)
    image.info["transparency"] = (1, 2, 3) if mode == "RGB" else 0
    found, change = pixels._plain(image, pixels.DecodeOptions(8))
    image.info.clear()
    assert found.tobytes() == image.convert("RGB").tobytes()
    assert change == ["alpha dropped"]


def test_any_failure_of_a_decoder_is_one_of_the_image(monkeypatch):
    for error in (RuntimeError("x"), ZeroDivisionError(), AttributeError("y"), AssertionError()):

        def fail(content, error=error):
            raise error

        monkeypatch.setattr(pixels, "open_image", fail)
        with pytest.raises(DataError, match="does not decode: "):
            pixels.decode(b"x", 3)


def test_a_thin_image_is_not_blown_up_to_gigabytes():
    with pytest.raises(DataError, match="too long and thin for 4096 pixels: 409600 x 4096"):
        CROPS["center"].cut(Image.new("L", (100, 1)), 4096, ())


def test_a_link_in_a_circle_is_a_bad_file_and_not_the_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png(0))
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    assert open_source(Path(tmp_path)).files == ["1.png", "loop.png"]
