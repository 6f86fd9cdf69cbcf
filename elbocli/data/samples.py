"""Read samples: an NPY stream, .npy, .npz, .h5, or any other image source."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from elbocli.data.decode import decode, is_picture
from elbocli.data.kinds.arrays import NPZ, StreamRows, npy_rows, npz_labels, npz_rows, open_zip
from elbocli.data.registry import DatasetRows, Images
from elbocli.data.settings import DecodeOptions
from elbocli.data.sources import holds_images, open_source
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import PIPE
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.reading import reading
from elbocli.files.recognise import recognise, wrong_kind
from elbocli.files.records import JSON, parse_json
from elbocli.files.sample_files import SamplesAbout

BATCH_BYTES = 256 << 20  # largest size of a batch


class DecodedRows:
    """Images of an image source; slicing reads them. shape: (N, H, W, C), by the first image."""

    def __init__(self, images: Images):
        self.images = images
        self.shape = (len(images), *self._pixels(0).shape)

    def _pixels(self, index: int) -> np.ndarray:
        with reading(f"{self.images.prefix}{self.images.files[index]}", kind=DataError):
            content = self.images.refs[index].read()
            array = np.asarray(decode(content, DecodeOptions(channels=0))[0]) if isinstance(content, bytes) else content
        return array.reshape(*array.shape[:2], -1)

    def __getitem__(self, rows: slice) -> np.ndarray:
        pixels = []
        for index in range(*rows.indices(len(self.images))):
            pixels.append(self._pixels(index))
            if pixels[-1].shape != self.shape[1:]:
                name = self.images.files[index]
                first = self.images.files[0]
                shapes = f"{pixels[-1].shape}, but {first} has {self.shape[1:]}"
                raise DataError(
                    f"{self.images.prefix}{name}: (height, width, channels) is {shapes}; pack the images to one size with 'elbo prep'"
                )
        return np.stack(pixels)


def open_pictures(path: Path) -> Images:
    """Open an image source without the files that are no pictures, if it has pictures. Raises DataError, FormatError."""
    images = open_source([path])
    pictures = [index for index, name in enumerate(images.files) if is_picture(name)]
    return images.take(pictures) if pictures else images


@dataclass
class BlackRows:
    """Black images, which stand for images that another process reads. shape: (N, H, W, C)."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.zeros((len(range(*rows.indices(self.shape[0]))), *self.shape[1:]), np.uint8)


Rows = np.ndarray | StreamRows | DatasetRows | DecodedRows | BlackRows


@dataclass
class SampleReader:
    """Reader of images of one size.

    rows: images [N, H, W, C].
    labels: class numbers [N], or None.
    made: how the images were drawn.
    class_names: empty unless the images are a dataset of several classes.
    preprocessing: crop and filter of the original images.
    """

    name: str
    rows: Rows
    labels: np.ndarray | None
    made: SamplesAbout
    class_names: Sequence[str]
    preprocessing: Mapping[str, JSON]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.rows.shape

    def at(self, start: int, count: int) -> np.ndarray:
        """Return `count` images from index `start`, uint8 [count, H, W, C].

        start: for a stream, the index at which the previous call ended.
        Raises DataError if the stream ends early.
        """
        return np.array(self.rows[start : start + count])

    def pick(self, indices: Sequence[int]) -> np.ndarray:
        """Return the images with these indices, uint8 [len(indices), H, W, C]; not for pipes. Raises DataError."""
        images = {index: self.at(index, 1)[0] for index in sorted(set(indices))}  # reads the file from front to back
        return np.stack([images[index] for index in indices])

    def batch(self, size: int) -> int:
        """Return a batch size: `size`, or less for large images."""
        return max(1, min(size, BATCH_BYTES // math.prod(self.shape[1:])))


def about_samples(text: object, where: object) -> SamplesAbout:
    """Parse JSON on how samples were drawn; None gives an empty record.

    where: file, for messages. Raises FormatError.
    """
    then = "; draw these samples again"
    return SamplesAbout.of(parse_json("{}" if text is None else str(text), f"{where}: facts about the samples", then), where)


@contextlib.contextmanager
def read_samples(source: Path | IO[bytes]) -> Iterator[SampleReader]:
    """Open the images in a binary stream, file or folder. Never unpickles.

    Raises FormatError or DataError: unsupported file kind, unsupported number type, or truncated file.
    """
    name, kind = (str(source), recognise(source)) if isinstance(source, Path) else ("standard input", PIPE)
    rows: Rows
    labels = None
    names = list[str]()
    made = SamplesAbout()
    about = dict[str, JSON]()
    with contextlib.ExitStack() as stack:
        if not isinstance(source, Path):
            rows = StreamRows(source, name)
        elif kind == PIPE:
            rows = StreamRows(stack.enter_context(open(source, "rb")), name)
        elif kind == "a dataset":
            data = Dataset(source)
            rows = DatasetRows(data)
            about = data.attributes.json()
            made = about_samples(data.attributes.samples, name)
            labels = data.labels
            names = data.class_names
        elif kind in ("samples", "statistics") and source.suffix.lower() == NPZ:
            archive = stack.enter_context(open_zip(source))
            with reading(source, kind=DataError):
                rows = npz_rows(archive, source)
                labels = npz_labels(archive, source, rows.shape[0])
                made = about_samples(archive.get("about"), name)
        elif kind == "samples":
            rows = npy_rows(source)
        elif holds_images(kind):
            images = open_pictures(source)
            rows = DecodedRows(images)
            labels = np.array(images.labels)
            names = images.class_names
        else:
            raise FormatError(wrong_kind(source, "images"))
        if len(names) == 1:  # a source without labels has one class
            labels = None
            names = []
        about = {**made.more, **about}
        yield SampleReader(name, rows, labels, made, names, {key: about[key] for key in PREPROCESSING if key in about})


def refuse_terminal(stream: IO[bytes] | IO[str]) -> None:
    """Raise UsageError if a stream for binary data is a terminal."""
    if stream.isatty():
        raise UsageError("standard output is a terminal; add -o FILE, or a pipe: elbo sample RUN | elbo eval --ref DATA.h5")
