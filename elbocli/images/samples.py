"""Read samples: an NPY stream, .npy, .npz, .h5, or a folder of images."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import PIPE
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.reading import reading
from elbocli.files.recognise import recognise, wrong_kind
from elbocli.files.records import parse_json
from elbocli.files.sample_files import SamplesAbout
from elbocli.images.decode import DecodeOptions, decode, is_picture
from elbocli.images.kinds.arrays import StreamRows, npy_rows, npz_labels, npz_rows, open_zip
from elbocli.images.registry import DatasetRows, Span

BATCH_BYTES = 256 << 20  # largest size of a batch


class FolderRows:
    """Images of a folder in the order of file names; slicing reads images."""

    def __init__(self, folder: Path):
        self.files = sorted(path for path in folder.iterdir() if is_picture(path.name))
        if not self.files:
            raise DataError(wrong_kind(folder, "images"))
        self.shape = (len(self.files), *self._pixels(self.files[0]).shape)

    def _pixels(self, path: Path) -> np.ndarray:
        with reading(path, kind=DataError):
            array = np.asarray(decode(Span(str(path)).read(), DecodeOptions(channels=0))[0])
        return array.reshape(*array.shape[:2], -1)

    def __getitem__(self, rows: slice) -> np.ndarray:
        images = []
        for path in self.files[rows]:
            images.append(self._pixels(path))
            if images[-1].shape != self.shape[1:]:
                both = f"{images[-1].shape}, but {self.files[0].name} has {self.shape[1:]}"
                raise DataError(f"{path}: (height, width, channels) is {both}; pack the images to one size with 'elbo prep'")
        return np.stack(images)


Rows = np.ndarray | StreamRows | DatasetRows | FolderRows


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
    preprocessing: dict[str, Any]

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
    name = str(source) if isinstance(source, Path) else "standard input"
    rows: Rows
    labels, names, made, about = None, list[str](), SamplesAbout(), dict[str, Any]()
    with contextlib.ExitStack() as stack:
        if not isinstance(source, Path):
            rows = StreamRows(source, name)
        elif source.is_dir():
            rows = FolderRows(source)
        elif source.suffix == ".h5":
            data = Dataset(source)
            rows, about = DatasetRows(data), data.attributes.json()
            made = about_samples(data.attributes.samples, name)
            if data.num_classes > 1:  # a dataset without labels has one class
                labels, names = data.labels, data.class_names
        elif source.suffix == ".npz":
            archive = stack.enter_context(open_zip(source))
            with reading(source, kind=DataError):
                rows = npz_rows(archive, source)
                labels = npz_labels(archive, source, rows.shape[0])
                made = about_samples(archive.get("about"), name)
        elif recognise(source) == PIPE:
            rows = StreamRows(stack.enter_context(open(source, "rb")), name)
        elif recognise(source) == "samples":
            rows = npy_rows(source)
        else:
            raise FormatError(wrong_kind(source, "images"))
        about = made.more | about
        yield SampleReader(name, rows, labels, made, names, {key: about[key] for key in PREPROCESSING if key in about})


def refuse_terminal(stream: IO[Any]) -> None:
    """Raise UsageError if a stream for binary data is a terminal."""
    if stream.isatty():
        raise UsageError("standard output is a terminal; add -o FILE, or a pipe: elbo sample RUN | elbo eval --ref DATA.h5")
