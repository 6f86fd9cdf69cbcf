"""Odd and hostile inputs, each declared once: how it is made, and what comes of it.

`python tests/odd_inputs.py` packs each and prints the table of docs/odd-images.md; tests/prep/test_odd_inputs.py
checks each against what is declared here.
"""

from __future__ import annotations

import contextlib
import io
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
from packing import pack
from PIL import Image, ImageCms

from elbocli.cli.commands import visible
from elbocli.errors import ElboError
from elbocli.files.dataset import Dataset

NOBODY = 65534
BIDS = "; put it right, or add --on-error skip to go on without it", ", or add --on-error skip"
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
    """An input. put: makes it at a path. packed: images that come of it. says: what elbo says of it, about; '' for
    nothing. pixels: [8, 8, C] of its first image. archive: a source by itself, not a file of a folder.
    nobody: packed without root's right to read everything.
    """

    what: str
    name: str
    put: Callable[[Path], object]
    packed: int
    says: str = ""
    pixels: np.ndarray | None = None
    archive: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    nobody: bool = False


ODD: list[Odd] = []


def image(
    what: str, name: str, content: bytes, packed: int, says: str = "", pixels: Any = None, **settings: Any
) -> None:
    expected = None if pixels is None else np.asarray(pixels)
    ODD.append(Odd(what, name, lambda path: path.write_bytes(content), packed, says, expected, False, settings))


def node(what: str, name: str, put: Callable[[Path], object], packed: int, says: str = "", pixels: Any = None) -> None:
    ODD.append(Odd(what, name, put, packed, says, pixels))


def archive(what: str, name: str, content: bytes, packed: int, says: str = "") -> None:
    ODD.append(Odd(what, name, lambda path: path.write_bytes(content), packed, says, archive=True))


# Images of every kind


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def ycck() -> bytes:
    content = bytearray(encoded(Image.fromarray(RGB).convert("CMYK"), "jpeg"))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


FEW = Image.fromarray(RGB // 128 * 255).quantize(8)
FEW_RGB = RGB // 128 * 255
ALPHA = np.dstack([RGB, np.full((8, 8), 51, np.uint8)])
ON_WHITE = np.asarray(Image.alpha_composite(Image.new("RGBA", (8, 8), "white"), Image.fromarray(ALPHA)).convert("RGB"))
CMYK = Image.fromarray(RGB).convert("CMYK")
CMYK_JPEG, YCCK_JPEG = encoded(CMYK, "jpeg"), ycck()
TURN = Image.Exif()
TURN[0x0112] = 6
FRAMES = [Image.fromarray(FEW_RGB), Image.fromarray(255 - FEW_RGB)]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MOTION = {"save_all": True, "append_images": FRAMES[1:]}

image("grey", "grey.png", encoded(GREY), 1, "", grey3(GREY))
image("grey, `--channels 1`", "grey-1.png", encoded(GREY), 1, "", GREY[..., None], channels=1)
image(
    "colour, `--channels 1`",
    "colour-1.png",
    GOOD,
    1,
    "",
    np.asarray(Image.fromarray(RGB).convert("L"))[..., None],
    channels=1,
)
image(
    "grey, `--channels 1 --store png`", "grey-png.png", encoded(GREY), 1, "", GREY[..., None], channels=1, store="png"
)
image(
    "grey, `--channels 1 --store webp`",
    "grey-webp.png",
    encoded(GREY),
    1,
    "",
    GREY[..., None],
    channels=1,
    store="webp",
)
image("1 bit", "bits.png", encoded(GREY > 127), 1, "1 converted", grey3((GREY > 127) * np.uint8(255)))
image("16-bit grey", "deep.png", encoded(DEEP), 1, "16-bit scaled", grey3(np.rint(DEEP / 257).astype(np.uint8)))
image(
    "16-bit grey, big-endian TIFF",
    "deep.tif",
    encoded(Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()), "tiff"),
    1,
    "16-bit scaled",
    grey3(np.rint(DEEP / 257).astype(np.uint8)),
)
image(
    "32-bit grey",
    "deeper.tif",
    encoded(Image.fromarray(DEEP.astype(np.int32) * 1000), "tiff"),
    0,
    "32-bit pixels: their range",
)
image("floating point", "float.tif", encoded(GREY.astype(np.float32), "tiff"), 0, "floating-point pixels: their range")
image("palette", "palette.png", encoded(FEW), 1, "P converted", FEW_RGB)
image("palette with transparency", "palette-alpha.png", encoded(FEW, transparency=0), 1, "alpha dropped", FEW_RGB)
image("grey with alpha", "la.png", encoded(np.dstack([GREY, GREY])), 1, "alpha dropped", grey3(GREY))
image("RGBA", "rgba.png", encoded(ALPHA), 1, "alpha dropped", RGB)
image("RGBA, `--background white`", "rgba-white.png", encoded(ALPHA), 1, "alpha blended", ON_WHITE, background="white")
image("CMYK", "cmyk.tif", encoded(CMYK, "tiff"), 1, "CMYK converted", CMYK.convert("RGB"))
image("CMYK JPEG with Adobe's marker", "cmyk.jpg", CMYK_JPEG, 1, "CMYK converted", opened(CMYK_JPEG))
image("YCCK JPEG with Adobe's marker", "ycck.jpg", YCCK_JPEG, 1, "CMYK converted", opened(YCCK_JPEG))
image("LAB", "lab.tif", encoded(Image.new("LAB", (8, 8), (128, 128, 128)), "tiff"), 1, "LAB converted")
image("PNG named .JPEG", "png.JPEG", GOOD, 1, "", RGB)
image("turned by EXIF", "turned.png", encoded(RGB, exif=TURN), 1, "", RGB)
image(
    "turned by EXIF, `--auto-orient`",
    "turned-auto.png",
    encoded(RGB, exif=TURN),
    1,
    "turned",
    np.rot90(RGB, -1),
    auto_orient=True,
)
image("colour profile", "profile.png", encoded(RGB, icc_profile=SRGB), 1, "", RGB)
image("animated GIF", "moving.gif", encoded(FRAMES[0], "gif", **MOTION), 1, "first frame of several", FEW_RGB)
image(
    "animated WebP",
    "moving.webp",
    encoded(FRAMES[0], "webp", lossless=True, **MOTION),
    1,
    "first frame of several",
    FEW_RGB,
)
image("animated PNG", "moving.png", encoded(FRAMES[0], "png", **MOTION), 1, "first frame of several", FEW_RGB)
image("1 x 1", "dot.png", encoded(RGB[:1, :1]), 1, "", np.broadcast_to(RGB[:1, :1], (8, 8, 3)))


# Images that are none


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bits_png(width: int, height: int, content: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def one_tile(side: int, tile: int) -> bytes:
    """A grey TIFF whose only tile may be larger than itself. Source: TIFF 6.0, sections 2 and 15."""
    content = zlib.compress(bytes(tile))
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(content)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


LARGE = RGB.repeat(20, 0).repeat(20, 1)
ZEROS = zlib.compress(bytes(2501 * 20000), 1)
TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 << 20), 1))

image("truncated JPEG", "cut.jpg", encoded(LARGE, "jpeg")[:700], 0, "does not decode")
image("truncated PNG", "cut.png", GOOD[:100], 0, "does not decode")
image("PNG with a wrong checksum", "crc.png", flipped(GOOD, GOOD.index(b"IDAT") + 20), 0, "does not decode")
image("empty file", "empty.png", b"", 0, "empty file")
image("text", "text.png", b"a picture of a cat\n", 0, "not an image: text")
image("web page", "page.jpg", b"<!DOCTYPE html>\n<title>404</title>", 0, "not an image: a web page")
image("SVG", "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 0, "not an image")
image(
    "PostScript", "drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", 0, "not an image"
)
image("zeros", "zeros.jpg", bytes(5000), 0, "not an image")
image(
    "PNG that claims 100000 x 100000", "claim.png", bits_png(100_000, 100_000, zlib.compress(b"")), 0, "too many pixels"
)
image("PNG that is 20000 x 20000 in 220 kB", "bomb.png", bits_png(20_000, 20_000, ZEROS), 0, "too many pixels")
image(
    "PNG whose text unpacks to 100 MB",
    "comment.png",
    bits_png(8, 8, zlib.compress(bytes(16)), TEXT_BOMB),
    0,
    "does not decode",
)
image(
    "WebP that is 16383 x 16383 in 30 bytes",
    "bomb.webp",
    b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xfe\xbf\xff\x0f" + bytes(5),
    0,
    "too many pixels",
)
image(
    "FITS, which may unpack to any size",
    "sky.fits",
    b"SIMPLE  =                    T".ljust(80) + bytes(2800),
    0,
    "not an image",
)
image(
    "TIFF of 64 x 64 in a tile of 32768 x 32768",
    "tile.tif",
    one_tile(64, 1 << 15),
    0,
    "does not decode",
)
image("icon (ICNS)", "icon.icns", b"icns\0\0\0\x18ic10\0\0\0\x10" + bytes(8), 0, "not an image")
image("1 x 60000", "thin.png", bits_png(1, 60_000, zlib.compress(bytes(120_000))), 1, "converted")
image("zip among images", "images.zip", b"PK\3\4" + bytes(60), 0, "a zip archive; unpack it, or give it")


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


node("named pipe", "pipe.png", os.mkfifo, 0, "is no regular file")
node("socket", "socket.png", listening, 0, "is no regular file")
ODD.append(Odd("file that may not be read", "secret.png", unreadable, 0, "Permission denied", nobody=True))
node("link to nothing", "dangling.png", lambda path: path.symlink_to("nowhere.png"), 0, "a link to nothing")
node("link to itself", "loop.png", lambda path: path.symlink_to(path.name), 0, "Too many levels")
node("link to the folder it is in", "again", lambda path: path.symlink_to("."), 0)
node("folder named like an image", "folder.png", inner, 1, "", RGB)
node("name that is not UTF-8", "\udcff\udcfe.png", lambda path: path.write_bytes(GOOD), 1, "", RGB)
node("name of two lines", "two\nlines.png", lambda path: path.write_bytes(GOOD), 1, "", RGB)
node(
    "empty file with a name of two lines",
    "bad\nlines.png",
    lambda path: path.touch(),
    0,
    r"bad\\nlines.png: empty file",
)
node(
    "tar among images that is none",
    "text.tar",
    lambda path: path.write_text("hello"),
    0,
    "text.tar: the archive is damaged",
)


# Archives

Member = tuple[str, bytes | dict[str, Any]]


def tar(*members: Member, form: int = tarfile.GNU_FORMAT) -> bytes:
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


def sparse() -> bytes:
    info = tarfile.TarInfo("b.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    return good_member() + info.tobuf(tarfile.GNU_FORMAT) + bytes(512) + bytes(1024)


def good_member() -> bytes:
    size = len(GOOD)
    info = tarfile.TarInfo("a.png")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + GOOD + bytes(-size % 512)


def huge_pax() -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 5 << 30
    return (
        good_member()
        + info.tobuf(tarfile.GNU_FORMAT)
        + b"30 path=b.png\n".ljust(512, b"\0")
        + good_member()
        + bytes(1024)
    )


def negative() -> bytes:
    """A size below zero leads back to the header itself."""
    info = tarfile.TarInfo("b.png")
    content = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    content[124:136] = (-512).to_bytes(12, "big", signed=True)
    content[148:156] = b" " * 8
    content[148:155] = b"%06o\0" % sum(content)
    return good_member() + bytes(content) + good_member() + bytes(1024)


TWO = tar(("a.png", GOOD), ("b.png", GOOD))
BLOCKS = len(good_member())
CLASSES = tar(("cat.tar", TWO), ("dog.tar", flipped(TWO, BLOCKS + 20)))

archive("tar, paths that lead outside", "outside.tar", tar(("../../a.png", GOOD), ("/b.png", GOOD)), 2)
archive(
    "tar with a symbolic link",
    "link.tar",
    tar(("a.png", GOOD), ("b.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
    1,
    "a link, in an archive",
)
archive(
    "tar with a hard link",
    "hard.tar",
    tar(("a.png", GOOD), ("b.png", {"type": tarfile.LNKTYPE, "linkname": "a.png"})),
    2,
)
archive(
    "tar with a hard link to nothing",
    "nohard.tar",
    tar(("a.png", GOOD), ("b.png", {"type": tarfile.LNKTYPE, "linkname": "../x"})),
    1,
    "a link to x, which is not in the archive",
)
archive(
    "tar with a device",
    "device.tar",
    tar(("a.png", GOOD), ("b.png", {"type": tarfile.CHRTYPE})),
    1,
    "not a regular file, in an archive",
)
archive(
    "tar with a named pipe",
    "pipe.tar",
    tar(("a.png", GOOD), ("b.png", {"type": tarfile.FIFOTYPE})),
    1,
    "not a regular file, in an archive",
)
archive("tar with a sparse file", "sparse.tar", sparse(), 1, "a sparse file, in an archive")
archive(
    "tar with long names",
    "long.tar",
    tar(("d/" * 30 + "a" * 150 + ".png", GOOD), ("d/" * 30 + "e" * 200 + ".png", GOOD)),
    2,
)
archive(
    "tar with a NUL in a name",
    "nul.tar",
    tar(("a.png", GOOD), ("b.png", {"pax_headers": {"path": "x\0y.png"}}), form=tarfile.PAX_FORMAT),
    1,
    "empty file",
)
archive("tar that ends in a header", "header.tar", TWO[: BLOCKS + 100], 1, "is damaged at byte")
archive("tar that ends in an image", "content.tar", TWO[: BLOCKS + 600], 1, "damaged or ends early|cut short")
archive("tar without its end mark", "mark.tar", TWO[: 2 * BLOCKS], 2, "has no end mark and may be cut short")
archive("tar with a damaged first header", "first.tar", flipped(TWO, 20), 0, "begins like no tar")
archive("tar with a damaged second header", "second.tar", flipped(TWO, BLOCKS + 20), 1, "is damaged at byte")
archive("tar with a header of 5 GB", "pax.tar", huge_pax(), 1, "damaged")
archive("tar with a size below zero", "negative.tar", negative(), 1, "damaged")
archive("tar of tars, one of them damaged", "classes.tar", CLASSES, 3, "dog: the archive is damaged")
archive("compressed tar", "two.tar.gz", b"\x1f\x8b" + bytes(600), 0, "is compressed; unpack it once")


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return buffer.getvalue()


def patched(content: bytes, local: int | None, central: int, value: bytes) -> bytes:
    """With a field of the last entry changed, at those offsets of its two headers."""
    changed = bytearray(content)
    for magic, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        if offset is not None:
            start = changed.rindex(magic) + offset
            changed[start : start + len(value)] = value
    return bytes(changed)


def linked_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.png", GOOD)
        info = zipfile.ZipInfo("b.png")
        info.external_attr = 0o120777 << 16
        made.writestr(info, "/etc/passwd")
    return buffer.getvalue()


PAIR = zipped(("a.png", GOOD), ("b.png", GOOD))
STORED = zipped(("a.png", GOOD), ("b.png", GOOD), method=zipfile.ZIP_STORED)
SIZE = len(GOOD)
BZIPPED = zipped(("a.png", GOOD), ("b.png", bytes(64 << 20)), method=zipfile.ZIP_BZIP2)

archive("zip, paths that lead outside", "outside.zip", zipped(("../../a.png", GOOD), ("/b.png", GOOD)), 2)
archive("zip with a symbolic link", "link.zip", linked_zip(), 1, "a link, in an archive")
archive("zip with an encrypted image", "encrypted.zip", patched(PAIR, 6, 8, b"\1"), 1, "does not unpack")
archive("zip cut short", "cut.zip", PAIR[:-30], 0, "damaged or cut short")
archive(
    "zip with a flipped byte in an image",
    "flipped.zip",
    flipped(STORED, STORED.rindex(GOOD) + 60),
    1,
    "does not unpack",
)
archive(
    "zip that says a size too small",
    "small.zip",
    patched(PAIR, None, 24, struct.pack("<I", SIZE - 9)),
    1,
    "does not unpack",
)
archive("zip that says a size too large", "large.zip", patched(PAIR, None, 24, struct.pack("<I", SIZE + 9)), 2)
archive(
    "zip with 64 MB in 45 bytes", "bzip2.zip", patched(BZIPPED, None, 24, struct.pack("<I", 100)), 1, "does not unpack"
)
archive(
    "zip in a zip", "nested.zip", zipped(("a.png", GOOD), ("b.zip", PAIR)), 1, "a zip archive; unpack it, or give it"
)
archive("zip packed in an unknown way", "method.zip", patched(PAIR, 8, 10, b"\x63\0"), 1, "does not unpack")


# What comes of them


@dataclass(frozen=True)
class Outcome:
    """packed: images; says: what elbo says when it may stop; warned: everything it says with --on-error skip;
    skipped: the names it lists then.
    """

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


def outcome(odd: Odd, folder: Path) -> Outcome:
    """Pack it twice, to stop and to skip."""
    source, out = source_of(odd, folder), folder / "out.h5"
    settings = {"size": 8, **odd.settings}
    stopped, messages, packed, pixels = "", [], 0, None
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
            rows = [i for i, name in enumerate(data.contents()[1]["files"]) if odd.archive or name.startswith("odd/")]
            pixels = data.batch(np.array(rows[:1]))[0] if rows else None
    changed = next((m.partition(": ")[2] for m in messages if m.startswith("changed while")), "")
    listed = folder / "out.skipped.jsonl"
    says = stopped.replace(f"{folder}/", "") or re.sub(r"\b1 ", "", changed, count=1)
    return Outcome(packed, says, messages, listed.read_text() if listed.exists() else "", pixels)


def described(odd: Odd, found: Outcome) -> str:
    """A line of the table: without what depends on the versions of libraries."""
    says = visible(found.says)
    for bid in BIDS:
        says = says.removesuffix(bid)
    says = re.sub(r"(does not (?:decode|unpack)): (?!not an image|32-bit).*", r"\1: …", says)
    says = re.sub(r" \([^()]*(?:\([^()]*\))?[^()]*\)(?=; get it again)", " (…)", says)
    says = says.encode("utf-8", "replace").decode().replace("|", "\\|")
    result = "packed" if found.packed else "refused" if says else "left out"
    if odd.archive and found.packed:
        result = f"{found.packed} packed"
    return f"| {odd.what} | {result} | {says or 'nothing'} |"


HEAD = """# Odd images and what elbo does with them

Each row is an input that the tests create and pack at 8 pixels. The last column is the error message if elbo refuses the input.
If elbo packs it, the column shows how the summary counts it. With `--on-error skip`, elbo leaves out images that it refuses and
lists them in `OUT.skipped.jsonl`; from a damaged archive it packs the images that it can read. elbo never unpacks an archive to
disk. The archives contain one or two good images besides the input that the row names. [Security](security.md) says what a file
from a stranger can do.

`make docs` writes this page; edit `tests/odd_inputs.py`.

| input | outcome | what elbo says |
|---|---|---|
"""


def page() -> str:
    """docs/odd-images.md."""
    lines = []
    for odd in ODD:
        with open_folder() as folder:
            lines.append(described(odd, outcome(odd, folder)))
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
