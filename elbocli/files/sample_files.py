"""Write samples: an NPY stream, .npy, .npz (`arr_0`, labels in `arr_1`), .h5, a folder of PNGs, or a contact sheet."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from elbocli.errors import UsageError
from elbocli.files.atomic import new_file, new_folder, writing
from elbocli.files.contact_sheet import Layout, lay_out, picture, rows_of_classes, write_contact_sheet
from elbocli.files.dataset import DatasetWriter
from elbocli.files.recognise import png_names
from elbocli.files.records import JSON, ExtraKeys, Record, stored
from elbocli.files.resumable import IMAGES, BlockLayout, Resumable
from elbocli.runtime.progress import progress
from elbocli.version import __version__

# Keys of SamplesHeader.about that may differ when an unfinished file is resumed
FREE = ("run", "weights_file", "guide", "guide_weights_file", "command", "elbo_version")
FILE_BYTES = 8192  # bytes of disk that a small file needs besides its content


@stored("`about` of samples (npz), attribute `samples` of a dataset")
class SamplesAbout(Record):
    """How samples were drawn. more: run, weights, sampler, seed and other keys."""

    more: ExtraKeys = {}


@dataclass(frozen=True)
class SamplesHeader:
    """Description of samples to be written.

    shape: (N, H, W, C).
    labels: class of each image, [N]; None: no classes.
    seeds: seed of each image, [N].
    about: how the samples are drawn: key of `SamplesAbout` → value.
    scale: enlargement of images on a contact sheet; 0: automatic.
    """

    shape: tuple[int, int, int, int]
    labels: np.ndarray | None
    seeds: np.ndarray
    class_names: list[str]
    about: Mapping[str, JSON]
    scale: int = 0

    @property
    def identity(self) -> dict[str, str]:
        """Values that must be equal to resume an unfinished file."""
        n, height, width, channels = self.shape
        facts = {**self.about, "n": n, "size": f"{height} x {width} x {channels}"}
        return {key: str(value) for key, value in facts.items() if key not in FREE}

    @property
    def about_json(self) -> str:
        return json.dumps(SamplesAbout.of(self.about, "about").json(), allow_nan=False)

    @property
    def layout(self) -> Layout:
        """Layout of the contact sheet."""
        count, height, width, _ = self.shape
        return lay_out(height, width, rows_of_classes(count, self.labels, self.class_names), self.scale)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the NPY v1 header of a C-ordered uint8 array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class StreamSink:
    """Writer of samples to a binary stream. done: number of images written."""

    def __init__(self, file: IO[bytes], header: SamplesHeader):
        self.done = 0
        self._name = Path(str(getattr(file, "name", "stream")))
        file.flush()
        # Unbuffered: at exit, a thread waiting for a slow reader would still hold the lock of the buffer.
        self._file: IO[bytes] = getattr(file, "raw", file)
        self._write(npy_header(header.shape))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        with writing(self._name):
            while left:
                left = left[self._file.write(left) :]

    def put(self, batch: np.ndarray) -> None:
        """Write the next images, uint8 [b, H, W, C]. Raises DataError."""
        self._write(batch.tobytes())
        self.done += len(batch)

    def finish(self, look: Callable[[], None]) -> None:
        """Do nothing: `put` has written all images."""


class FileSink:
    """Writer of samples to a file."""

    def __init__(self, file: Resumable, header: SamplesHeader):
        self._file = file
        self._header = header

    @property
    def done(self) -> int:
        """Number of images on disk."""
        return self._file.rows

    def put(self, batch: np.ndarray) -> None:
        """Write the next images, uint8 [b, H, W, C], to disk. Raises DataError if the disk is full."""
        self._file.append(batch, self.done + len(batch), {})

    def finish(self, look: Callable[[], None]) -> None:
        """Complete the file, which has all images, under its final name. Raises DataError if the disk is full.

        look: called after each PNG of a folder; may raise an error to stop.
        """
        file = self._file
        header = self._header
        out = self._file.out
        naming = file.overwrite, file.note_naming
        with writing(out):
            if file.complete:
                pass
            elif isinstance(file, DatasetWriter):
                _finish_dataset(file, header)
            elif out.suffix == ".npy":
                file.name(npy_header(header.shape))
            elif out.suffix == ".npz":
                labels: Any = {} if header.labels is None else {"arr_1": header.labels.astype("<i8")}
                with new_file(out, *naming) as archive:
                    np.savez(archive, arr_0=file.block(), **labels, about=np.array(header.about_json))
            elif out.suffix == ".png":
                with new_file(out, *naming) as sheet:
                    write_contact_sheet(sheet, file.block(), header.layout)
            else:
                with new_folder(out, *naming) as folder, ThreadPoolExecutor(thread_name_prefix="elbo-png") as pool:
                    images = file.block()
                    names = png_names(self.done)
                    saved = pool.map(lambda image, name: picture(image).save(folder / name), images, names)
                    for done, _ in enumerate(saved, 1):
                        progress(done, self.done, "png")
                        look()
            file.discard()


Sink = StreamSink | FileSink


def _finish_dataset(file: DatasetWriter, header: SamplesHeader) -> None:
    labels = header.labels
    names = header.class_names
    if labels is None:  # a dataset must have labels: one class stands for none
        labels = np.zeros(header.shape[0], np.int64)
        names = ["all"]
    about = {
        "num_classes": len(names),
        "image_size": header.shape[1],
        "elbo_version": __version__,
        "command": header.about.get("command", ""),
        "samples": header.about_json,
    }
    file.finish({"labels": labels, "seeds": header.seeds, "class_names": names}, about)


@contextlib.contextmanager
def open_samples(target: Path | IO[bytes], header: SamplesHeader, overwrite: bool = False, wait: float = 0) -> Iterator[Sink]:
    """Open a stream or a path for writing samples.

    target: a path's suffix gives the format; no suffix: a folder of PNGs.
    overwrite: replace an existing file, and discard an unfinished file of other settings.
    wait: seconds to wait for another process to release the file.
    Raises UsageError: for an unknown suffix, an existing file, an unfinished file of other settings, or an unusable `scale`.
    Raises DataError: when the disk is full.
    """
    suffix = target.suffix if isinstance(target, Path) else None
    if header.scale and suffix != ".png":
        raise UsageError("--zoom enlarges a contact sheet, but the output is no PNG; leave --zoom out, or add -o FILE.png")
    if not isinstance(target, Path):
        yield StreamSink(target, header)
        return
    count = header.shape[0]
    rows = BlockLayout(IMAGES, header.shape[1:])
    # Disk space for the final file or the PNGs, which are made of these rows, is allocated too.
    twice = BlockLayout(IMAGES, rows.row, 2 * rows.row_bytes + (-(-FILE_BYTES // count) if suffix else FILE_BYTES))
    file = Resumable(target, twice, 0, count, header.identity)
    if suffix == ".h5":
        file = DatasetWriter(target, rows, count, header.identity)
    elif suffix == ".npy":
        file = Resumable(target, rows, len(npy_header(header.shape)), count, header.identity)
    elif suffix == ".png":
        header.layout.check(target)
    elif suffix == "":
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
    elif suffix != ".npz":
        raise UsageError(f"{target}: unknown format {suffix!r}; use .npy, .npz, .h5, .png, a folder name, or - for a stream")
    with file.held(overwrite, wait):
        yield FileSink(file, header)
