"""An array of images in NumPy's format."""

from __future__ import annotations

from pathlib import Path

from elbocli.files.reading import open_file
from elbocli.images.image_refs import FileRows, array_rows
from elbocli.images.registry import Images, numbered, source
from elbocli.images.samples import read_header, refuse_short


@source("npy", magic=b"\x93NUMPY")
def open_npy(path: Path) -> Images:
    """Open a .npy. Raises FormatError when it holds no images."""
    with open_file(path) as file:
        shape, offset = read_header(file, str(path)), file.tell()
    refuse_short(f"{path}:", path.stat().st_size, offset, shape)
    return Images(numbered(shape[0]), None, array_rows(FileRows(str(path), offset, shape)))
