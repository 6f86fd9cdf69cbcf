"""Odd and hostile inputs, each declared once: how it is made, and what comes of it.

`python tools/odd_inputs.py` packs each and prints the table of docs/odd-images.md; tests/prep/test_odd_inputs.py
checks each against what is declared here.
"""

import contextlib
import io
import logging
import os
import re
import socket
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elbocli.data.pack import pack_images
from elbocli.data.settings import PrepSettings
from elbocli.errors import ElboError
from elbocli.files.dataset import Dataset
from elbocli.runtime.progress import log
from elbocli.runtime.text import visible

NOBODY = 65534
BID = "; repair the image, or add --on-error skip to leave the image out"
RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
GREY = RGB[..., 0]
DEEP = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)


def encoded(image: Image.Image | np.ndarray, kind: str = "png", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GOOD = encoded(RGB)


@dataclass(frozen=True)
class Odd:
    """An input. put: makes it at a path. packed: images that come of it. pixels: [8, 8, C] of its first image.
    archive: a source by itself, not a file of a folder. nobody: packed without root's right to read everything.
    """

    what: str
    name: str
    put: Callable[[Path], object]
    packed: int
    pixels: np.ndarray | None = None
    archive: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    nobody: bool = False


ODD: list[Odd] = []


def image(what: str, name: str, content: bytes, pixels: Any = None, packed: int = 1, **settings: Any) -> None:
    pixels = None if pixels is None else np.asarray(pixels)
    ODD.append(Odd(what, name, lambda path: path.write_bytes(content), packed, pixels, settings=settings))


def bad(what: str, name: str, content: bytes) -> None:
    image(what, name, content, packed=0)


def node(what: str, name: str, put: Callable[[Path], object], packed: int = 0, **more: Any) -> None:
    ODD.append(Odd(what, name, put, packed, **more))


def archive(what: str, name: str, content: bytes, packed: int = 1) -> None:
    node(what, name, lambda path: path.write_bytes(content), packed, archive=True)


# Images of every kind


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


FEW_RGB = RGB // 128 * 255
FEW = Image.fromarray(FEW_RGB).quantize(8)
COLOUR = Image.fromarray(RGB)
ALPHA = np.dstack([RGB, np.full((8, 8), 51, np.uint8)])
CMYK = COLOUR.convert("CMYK")
CMYK_JPEG = encoded(CMYK, "jpeg")
TURN = Image.Exif()
TURN[0x0112] = 6
MOTION = {"save_all": True, "append_images": [Image.fromarray(255 - FEW_RGB)]}
SCALED = grey3(np.rint(DEEP / 257).astype(np.uint8))
BIG_ENDIAN = Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes())

image("grey", "grey.png", encoded(GREY), grey3(GREY))
image("grey, `--channels 1`", "grey-1.png", encoded(GREY), GREY[..., None], channels=1)
image("colour, `--channels 1`", "colour-1.png", GOOD, np.asarray(COLOUR.convert("L"))[..., None], channels=1)
image("1 bit", "bits.png", encoded(GREY > 127), grey3((GREY > 127) * np.uint8(255)))
image("16-bit grey", "deep.png", encoded(DEEP), SCALED)
image("16-bit grey, big-endian TIFF", "deep.tif", encoded(BIG_ENDIAN, "tiff"), SCALED)
bad("32-bit grey", "deeper.tif", encoded(DEEP.astype(np.int32) * 1000, "tiff"))
bad("floating point", "float.tif", encoded(GREY.astype(np.float32), "tiff"))
image("palette", "palette.png", encoded(FEW), FEW_RGB)
image("palette with transparency", "palette-alpha.png", encoded(FEW, transparency=0), FEW_RGB)
image("grey with alpha", "la.png", encoded(np.dstack([GREY, GREY])), grey3(GREY))
image("grey with alpha, `--channels 1`", "la-1.png", encoded(np.dstack([GREY, GREY])), GREY[..., None], channels=1)
image("RGBA", "rgba.png", encoded(ALPHA), RGB)
image("CMYK", "cmyk.tif", encoded(CMYK, "tiff"), CMYK.convert("RGB"))
image("CMYK JPEG with Adobe's marker", "cmyk.jpg", CMYK_JPEG, Image.open(io.BytesIO(CMYK_JPEG)).convert("RGB"))
image("LAB", "lab.tif", encoded(Image.new("LAB", (8, 8), (128, 128, 128)), "tiff"))
image("PNG named .JPEG", "png.JPEG", GOOD, RGB)
image("turned by EXIF", "turned.png", encoded(RGB, exif=TURN), RGB)
image("animated GIF", "moving.gif", encoded(FEW_RGB, "gif", **MOTION), FEW_RGB)
image("animated PNG", "moving.png", encoded(FEW_RGB, "png", **MOTION), FEW_RGB)
image("1 x 1", "dot.png", encoded(RGB[:1, :1]), np.broadcast_to(RGB[:1, :1], (8, 8, 3)))


# Images that are none


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bits_png(width: int, height: int, size: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(size), 1)) + chunk(b"IEND", b"")


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


bad("truncated JPEG", "cut.jpg", encoded(RGB.repeat(20, 0).repeat(20, 1), "jpeg")[:700])
bad("truncated PNG", "cut.png", GOOD[:100])
bad("PNG with a wrong checksum", "crc.png", flipped(GOOD, GOOD.index(b"IDAT") + 20))
bad("empty file", "empty.png", b"")
bad("text", "text.png", b"a picture of a cat\n")
bad("web page", "page.jpg", b"<!DOCTYPE html>\n<title>404</title>")
bad("PostScript", "drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
bad("PNG that claims 100000 x 100000", "claim.png", bits_png(100_000, 100_000, 0))
bad("PNG that is 20000 x 20000 in 220 kB", "bomb.png", bits_png(20_000, 20_000, 2501 * 20000))
bad("WebP that is 16383 x 16383 in 30 bytes", "bomb.webp", b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xfe\xbf\xff\x0f" + bytes(5))
bad("icon (ICNS)", "icon.icns", b"icns\0\0\0\x18ic10\0\0\0\x10" + bytes(8))
image("1 x 60000", "thin.png", bits_png(1, 60_000, 120_000))
bad("zip among images", "images.zip", b"PK\3\4" + bytes(60))


# What is no file


def listening(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def inner(path: Path) -> None:
    path.mkdir()
    (path / "inner.png").write_bytes(GOOD)


def unreadable(path: Path) -> None:
    path.write_bytes(GOOD)
    path.chmod(0)


node("named pipe", "pipe.png", os.mkfifo)
node("socket", "socket.png", listening)
node("file that may not be read", "secret.png", unreadable, nobody=True)
node("link to nothing", "dangling.png", lambda path: path.symlink_to("nowhere.png"))
node("link to itself", "loop.png", lambda path: path.symlink_to(path.name))
node("link to the folder it is in", "again", lambda path: path.symlink_to("."))
node("folder named like an image", "folder.png", inner, 1, pixels=RGB)
image("name that is not UTF-8", "\udcff\udcfe.png", GOOD, RGB)
image("name of two lines", "two\nlines.png", GOOD, RGB)
bad("empty file with a name of two lines", "bad\nlines.png", b"")
bad("tar among images that is none", "text.tar", b"hello")


# Archives


def tar(*members: tuple[str, bytes | dict[str, Any]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """members: (name, content), or (name, fields of the header)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                made.addfile(info)
    return buffer.getvalue()


def negative() -> bytes:
    """A size below zero leads back to the header itself."""
    content = bytearray(TWO)
    content[BLOCKS + 124 : BLOCKS + 136] = (-512).to_bytes(12, "big", signed=True)
    content[BLOCKS + 148 : BLOCKS + 156] = b" " * 8
    content[BLOCKS + 148 : BLOCKS + 155] = b"%06o\0" % sum(content[BLOCKS : BLOCKS + 512])
    return bytes(content)


GOOD_MEMBER = ("a.png", GOOD)
TWO = tar(GOOD_MEMBER, ("b.png", GOOD))
BLOCKS = 512 + len(GOOD) + -len(GOOD) % 512
LONG = ("d/" * 30 + "a" * 150 + ".png", GOOD), ("d/" * 30 + "e" * 200 + ".png", GOOD)

archive("tar, paths that lead outside", "outside.tar", tar(("../../a.png", GOOD), ("/b.png", GOOD)), 2)
for what, name, fields, packed in (
    ("tar with a symbolic link", "link.tar", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, 1),
    ("tar with a hard link", "hard.tar", {"type": tarfile.LNKTYPE, "linkname": "a.png"}, 2),
    ("tar with a hard link to nothing", "nohard.tar", {"type": tarfile.LNKTYPE, "linkname": "../x"}, 1),
    ("tar with a named pipe", "pipe.tar", {"type": tarfile.FIFOTYPE}, 1),
    ("tar with a NUL in a name", "nul.tar", {"pax_headers": {"path": "x\0y.png"}}, 1),
):
    archive(what, name, tar(GOOD_MEMBER, ("b.png", fields), form=tarfile.PAX_FORMAT), packed)
archive("tar with long names", "long.tar", tar(*LONG), 2)
archive("tar that ends in a header", "header.tar", TWO[: BLOCKS + 100], 0)
archive("tar that ends in an image", "content.tar", TWO[: BLOCKS + 600], 0)
archive("tar without its end mark", "mark.tar", TWO[: 2 * BLOCKS], 0)
archive("tar with a damaged first header", "first.tar", flipped(TWO, 20), 0)
archive("tar with a damaged second header", "second.tar", flipped(TWO, BLOCKS + 20), 0)
archive("tar with a size below zero", "negative.tar", negative(), 0)
archive("tar of tars, one of them damaged", "classes.tar", tar(("cat.tar", TWO), ("dog.tar", flipped(TWO, BLOCKS + 20))), 0)
archive("compressed tar", "two.tar.gz", b"\x1f\x8b" + bytes(600), 0)


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    """mode: of the last."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16 if content is members[-1][1] else 0
            made.writestr(info, content, method)
    return buffer.getvalue()


def patched(local: int | None, central: int, value: bytes) -> bytes:
    """PAIR with a field of its last entry changed, at those offsets of its two headers."""
    changed = bytearray(PAIR)
    for magic, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        if offset is not None:
            start = changed.rindex(magic) + offset
            changed[start : start + len(value)] = value
    return bytes(changed)


PAIR = zipped(GOOD_MEMBER, ("b.png", GOOD))
STORED = zipped(GOOD_MEMBER, ("b.png", GOOD), method=zipfile.ZIP_STORED)

archive("zip, paths that lead outside", "outside.zip", zipped(("../../a.png", GOOD), ("/b.png", GOOD)), 2)
archive("zip with a symbolic link", "link.zip", zipped(GOOD_MEMBER, ("b.png", b"/etc/passwd"), mode=0o120777))
archive("zip with an encrypted image", "encrypted.zip", patched(6, 8, b"\1"))
archive("zip cut short", "cut.zip", PAIR[:-30], 0)
archive("zip with a flipped byte in an image", "flipped.zip", flipped(STORED, STORED.rindex(GOOD) + 60))
archive("zip that says a size too small", "small.zip", patched(None, 24, struct.pack("<I", len(GOOD) - 9)))
archive("zip that says a size too large", "large.zip", patched(None, 24, struct.pack("<I", len(GOOD) + 9)), 2)
archive("zip in a zip", "nested.zip", zipped(GOOD_MEMBER, ("b.zip", PAIR)))
archive("zip packed in an unknown way", "method.zip", patched(8, 10, b"\x63\0"))


# What comes of them


@dataclass(frozen=True)
class Outcome:
    """packed: number of images. says: the error. With --on-error skip, `warned` is the warning, `skipped` its file names."""

    packed: int
    says: str
    warned: list[str]
    skipped: str
    pixels: np.ndarray | None


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """For root: without the right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that anybody may use."""
    with tempfile.TemporaryDirectory(prefix="elbo-odd-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def source_of(odd: Odd, folder: Path) -> Path:
    """Make what is packed: the archive, or a folder of class folders, the odd input in 'odd' and a good image in 'good'."""
    if odd.archive:
        odd.put(folder / odd.name)
        return folder / odd.name
    source = folder / "src"
    for name in ("odd", "good"):
        (source / name).mkdir(parents=True)
    (source / "good" / "good.png").write_bytes(GOOD)
    odd.put(source / "odd" / odd.name)
    return source


def pack(source: Path, out: Path, **settings: Any) -> list[str]:
    """Pack a source; return the messages that were logged."""
    handler = logging.Handler(logging.INFO)
    level = log.level
    messages = list[str]()
    # As text at once: a record may hold an error, whose traceback holds this frame and open files.
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        pack_images([source], out, PrepSettings(**settings))
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return messages


def outcome(odd: Odd, folder: Path) -> Outcome:
    """Pack it twice, to stop and to skip."""
    source = source_of(odd, folder)
    out = folder / "out.h5"
    settings = {"size": 8, **odd.settings}
    stopped = ""
    messages = []
    packed = 0
    pixels = None
    with as_nobody() if odd.nobody else contextlib.nullcontext():
        try:
            pack(source, folder / "stop.h5", **settings)
        except ElboError as error:
            stopped = str(error)
        try:
            messages = pack(source, out, on_error="skip", **settings)
        except ElboError as error:
            messages = [str(error)]
        else:
            data = Dataset(out)
            packed = len(data) - (not odd.archive)
            rows = [i for i, name in enumerate(data.contents()["files"]) if odd.archive or name.startswith("odd/")]
            pixels = data.read(np.array(rows[:1]))[0] if rows else None
    changed = next((m.partition(": ")[2] for m in messages if m.startswith("decoding changed")), "")
    listed = folder / "out.skipped.jsonl"
    says = stopped.replace(f"{folder}/", "") or re.sub(r"\b1 ", "", changed, count=1)
    return Outcome(packed, says, messages, listed.read_text() if listed.exists() else "", pixels)


def described(odd: Odd, found: Outcome) -> str:
    """The outcome in the table: without names, and without what depends on the versions of libraries."""
    says = visible(found.says).removesuffix(BID)
    says = re.sub(r"(does not (?:decode|unpack)): (?!not an image|32-bit).*", r"\1: …", says)
    says = re.sub(r"(damaged or cut short): .*(?=; get it again)", r"\1: …", says)
    says = says.encode("utf-8", "replace").decode().replace("|", "\\|")
    result = "packed" if found.packed else "refused" if says else "left out"
    if odd.archive and found.packed:
        result = f"{found.packed} packed"
    return f"{result} | {says.partition(': ')[2] or says or 'nothing'}"


HEAD = """# Odd images and what elbo does with them

Each row lists inputs with the same outcome; `tools/odd_inputs.py` creates and packs them. The last column is the error message,
after the name of the file, or how the summary counts a packed image. With `--on-error skip`, elbo leaves out images that it
refuses, and lists them in `OUT.skipped.jsonl`. Each archive also contains one
or two good images, which count.

| inputs | outcome | message |
|---|---|---|
"""


def page(found: Callable[[Odd], Outcome]) -> str:
    """docs/odd-images.md."""
    inputs: dict[str, list[str]] = {}
    for odd in ODD:
        inputs.setdefault(described(odd, found(odd)), []).append(odd.what)
    return HEAD + "".join(f"| {'; '.join(names)} | {said} |\n" for said, names in inputs.items())


if __name__ == "__main__":

    def alone(odd: Odd) -> Outcome:
        with open_folder() as folder:
            return outcome(odd, folder)

    sys.stdout.write(page(alone))
