"""The dataset format (HDF5): images or latents in one block, read through a memory map.

Pixels: block `images`, uint8 [N, H, W, C].
Latents: block `latents`, float16 [N, 2C, H, W], mean and standard deviation of C channels.
Beside the block: `labels` int64 [N], lists of text `class_names` and `files`, and attributes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.atomic import write_all, writing
from elbocli.files.checkpoint import RunData
from elbocli.files.latents import LatentSpace, read_space
from elbocli.files.reading import reading
from elbocli.files.recognise import recognise, wrong_kind
from elbocli.files.records import JSON, Count, ExtraKeys, Record, stored
from elbocli.files.resumable import IMAGES, LATENTS, BlockLayout, Resumable
from elbocli.runtime.progress import progress

# name of a block → its type and shape
BLOCKS = {
    IMAGES: "uint8 (N, H, W, 1 or 3) with N > 0",
    LATENTS: "float16 (N, 2C, H, W) with N > 0",
}
PREPROCESSING = ("crop", "filter")  # attributes that record how images were made, beside `image_size`
MOST_CLASSES = 10**6  # images of more classes are not counted by class
# attributes: digest of the block, and of everything else
PAYLOAD = "payload_sha256"
CONTENTS = "contents_sha256"
SCAN_BYTES = 16 << 20  # read at a time, where the whole block is read
Members = dict[str, np.ndarray | list[str]]  # what a dataset holds beside its block: name → array or list of text


@stored("attributes of a dataset (HDF5)", "elbo-dataset", remedy="; make one with 'elbo prep'")
class DatasetAttributes(Record, kw_only=True):
    """Attributes of a dataset, all optional.

    crop, filter: methods of cropping and resizing. skipped: number of unusable images.
    digests: names of the digests that the file must have, with spaces between.
    changed: JSON object: change made while decoding, such as "alpha dropped" → number of images.
    payload_sha256: digest of the block. contents_sha256: digest of everything else in the file.
    source_sha256: sum of digests, each of a source image's name and content.
    samples: how drawn samples were made, JSON of SamplesAbout, or None. more: others, such as the latent space's.
    """

    count: Count | None = None
    num_classes: Count | None = None
    image_size: Count | None = None
    channels: Count | None = None
    crop: str | None = None
    filter: str | None = None
    digests: str | None = None
    payload_sha256: str | None = None
    contents_sha256: str | None = None
    source_sha256: str | None = None
    skipped: Count | None = None
    changed: str | None = None
    samples: str | None = None
    elbo_version: str | None = None
    pillow_version: str | None = None
    command: str | None = None
    more: ExtraKeys = {}


class Dataset:
    """An elbo-dataset, opened for reading.

    latents: whether a dataset of latents is accepted too.
    Raises FormatError if the file is not a dataset, is damaged, or holds latents where pixels are needed.
    """

    def __init__(self, path: Path | str, latents: bool = False):
        self.path = Path(path)
        with _opened(self.path) as file:
            self._about = {key: _plain(value) for key, value in file.attrs.items()}
            self.attributes = DatasetAttributes.of(self._about, path)
            self.kind: str = next((kind for kind in BLOCKS if kind in file), IMAGES)
            block = self._member(file, self.kind)
            self.shape: tuple[int, int, int, int] = self._shape(block)
            offset = None if block.chunks else block.id.get_offset()
            # Chunks, which other programs may write, can't be mapped into memory.
            rows = block[()] if offset is None else np.memmap(self.path, block.dtype, "r", offset, block.shape)
            self.block: np.ndarray = np.asarray(rows)
            names = self._member(file, "class_names")[()] if "class_names" in file else []
            self.class_names: list[str] = self._text("class_names", names)
            classes = len(self.class_names) or self.attributes.num_classes or 0
            labels = np.asarray(self._member(file, "labels")[()])
            limit = classes or np.iinfo(np.int64).max
            whole = labels.shape == (len(self),) and labels.dtype.kind in "iu"
            if not whole or not 0 <= labels.min() <= labels.max() < limit:
                found = f"{labels.dtype} {labels.shape}, expected {len(self)} integers in [0, {limit})"
                raise FormatError(f"{path}: 'labels' is {found}; pack the images again")
            self.labels: np.ndarray = labels.astype(np.int64)
            self.num_classes = classes or int(self.labels.max()) + 1
        if self.kind == LATENTS and not latents:
            raise FormatError(f"{path}: holds latents, but this command needs pixels; name a dataset of images instead")

    def _member(self, file: h5py.File, name: str) -> h5py.Dataset:
        member = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(member, h5py.Dataset) or member.external or member.is_virtual:
            raise FormatError(f"{self.path}: array {name!r} is missing or a link; pack the images again")
        return member

    def _text(self, name: str, member: object) -> list[str]:
        words = _plain(member)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise FormatError(f"{self.path}: array {name!r} is not a list of text; pack the images again")
        return words

    def _shape(self, block: h5py.Dataset) -> tuple[int, int, int, int]:
        match self.kind, str(block.dtype), block.shape:
            case "images", "uint8", (n, h, w, (1 | 3) as c) if min(n, h, w) > 0:
                return n, h, w, c
            case "latents", "float16", (n, c, h, w) if min(n, c, h, w) > 0 and c % 2 == 0:
                return n, h, w, c // 2
        found = f"{self.kind!r} is {block.dtype} {block.shape}"
        raise FormatError(f"{self.path}: damaged: {found}, expected {BLOCKS[self.kind]}; pack the images again")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return (image, label).

        image: uint8 [C, H, W]; for latents float16 [2C, H, W], mean and standard deviation.
        """
        images, labels = self.batch([range(len(self))[index]])
        return images[0], int(labels[0])

    def __reduce__(self) -> tuple[type[Dataset], tuple[Path, bool]]:
        return Dataset, (self.path, self.kind == LATENTS)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, {len(self)} {self.kind}, {self.num_classes} classes)"

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels, or of the latents."""
        return self.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels of the images (1 or 3) or latents."""
        return self.shape[3]

    @property
    def latent_space(self) -> LatentSpace | None:
        """Latent space; None for pixels. Raises FormatError if an attribute is missing or wrong."""
        return read_space(self.attributes.more, self.channels, self.path) if self.kind == LATENTS else None

    def check_square(self) -> None:
        """Raise FormatError if the images are not square."""
        _, height, width, _ = self.shape
        if height != width:
            size = f"{width} x {height} {'latents' if self.kind == LATENTS else 'pixels'}"
            raise FormatError(f"{self.path}: images are {size}, but networks need squares; pack them with 'elbo prep'")

    def batch(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (images, labels) of rows, in the layout of a single row: uint8 [n, C, H, W] or float16 [n, 2C, H, W]; int64 [n].

        indices: [n]. Raises FormatError if a row is damaged.
        """
        images = self.read(indices)
        if self.kind != LATENTS:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return images, self.labels[np.asarray(indices)]

    def read(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return copies of rows as they are stored: images uint8 [n, H, W, C], or latents float16 [n, 2C, H, W].

        indices: [n].
        """
        return self.block.take(np.asarray(indices), axis=0)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield all rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.read(range(start, min(start + size, len(self))))

    def contents(self) -> Members:
        """Return everything except the block. Raises FormatError."""
        with _opened(self.path) as file:
            members = {name: self._member(file, name)[()] for name in sorted(set(file) - set(BLOCKS))}
            return {
                name: self._text(name, each) if each.dtype.kind == "O" else np.asarray(each) for name, each in members.items()
            }

    def contents_digest(self) -> str:
        """Return the sha256 of everything except the block. Raises FormatError."""
        return contents_digest(self._about, self.contents())

    def payload_digest(self) -> str:
        """Return the sha256 of the block, which is read as a whole."""
        digest = hashlib.sha256()
        content = self.block.reshape(-1).view(np.uint8)
        for start in range(0, len(content), SCAN_BYTES):
            digest.update(content[start : start + SCAN_BYTES].data)
            progress(min(start + SCAN_BYTES, len(content)) * len(self) // len(content), len(self), "img")
        return digest.hexdigest()

    @cached_property
    def payload_sha256(self) -> str:
        """SHA-256 of the block: the attribute, or computed for a file without digests, as other programs write them."""
        return self.attributes.payload_sha256 or self.payload_digest()

    def check(self, name: str, digest: str) -> bool:
        """Compare a digest with the recorded one; return whether one is recorded. Raises DataError.

        name: payload_sha256 or contents_sha256.
        """
        written = getattr(self.attributes, name)
        if written is None and name not in (self.attributes.digests or ""):
            return False
        if written != digest:
            part = "images" if name == PAYLOAD else "labels, names or attributes"
            raise DataError(f"{self.path}: damaged: its {part} differ from their digest; pack the images again")
        return True

    def verify(self) -> dict[str, bool]:
        """Read the whole dataset and compare its digests; return whether each is recorded. Raises DataError."""
        computed = {CONTENTS: self.contents_digest(), PAYLOAD: self.payload_digest()}
        return {name: self.check(name, digest) for name, digest in computed.items()}

    def identity(self) -> RunData:
        """Return the description of the dataset for config.yaml."""
        space = self.latent_space
        about = self.attributes
        counts = None
        if self.num_classes <= MOST_CLASSES:
            counts = np.bincount(self.labels, minlength=self.num_classes).tolist()
        return RunData(
            path=str(self.path),
            count=len(self),
            image_size=self.image_size,
            channels=self.channels,
            num_classes=self.num_classes,
            payload_sha256=self.payload_sha256,
            labels_sha256=hashlib.sha256(self.labels.astype("<i8").tobytes()).hexdigest(),
            class_names=self.class_names,
            class_counts=counts,
            crop=about.crop,
            filter=about.filter,
            more={} if space is None else asdict(space),
        )


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if recognise(path) != "a dataset":
        raise FormatError(wrong_kind(path, "a dataset"))
    with reading(f"{path}: damaged", "; make it again with 'elbo prep'"), h5py.File(path, "r", locking=False) as file:
        yield file


def find_dataset(folder: Path) -> Path:
    """Return the only dataset in a folder. Raises DataError unless there is exactly one."""
    datasets = []
    for path in folder.glob("*.h5"):
        with suppress(FormatError):
            datasets.append(Dataset(path, latents=True).path)
    if len(datasets) != 1:
        raise DataError(
            f"{len(datasets)} datasets in the working directory, not 1; give a path, set ELBO_DATA, or run 'elbo prep SRC OUT.h5'"
        )
    return datasets[0]


def contents_digest(attributes: Mapping[str, object], members: Members) -> str:
    """Return the sha256 of everything in a dataset but its block and `contents_sha256`."""
    attributes = {key: value for key, value in attributes.items() if key != "contents_sha256"}
    # default=str: the attributes of a damaged file may have types that JSON lacks.
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True, default=str).encode())
    for name, value in sorted(members.items()):
        if isinstance(value, list):
            kind = "object"
            shape = [len(value)]
            content = json.dumps(value).encode()
        else:
            little = value.astype(value.dtype.newbyteorder("<"), copy=False)
            kind = str(value.dtype)
            shape = list(value.shape)
            content = little.tobytes()
        digest.update(json.dumps([name, kind, shape, len(content)]).encode())
        digest.update(content)
    return digest.hexdigest()


def _plain(value: object) -> object:
    # HDF5 has values that JSON lacks, such as NaN, complex numbers and references; these become text.
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    match value:
        case list() | tuple():
            return [*map(_plain, value)]
        case bytes():
            return value.decode("utf-8", "replace")
        case h5py.Empty():
            return None
        case float() if not math.isfinite(value):
            return str(value)
        case str() | int() | float() | None:
            return value
    return str(value)


LIBVER = ("earliest", "v108")
DIGESTS = f"{PAYLOAD} {CONTENTS}"  # value of attribute `digests`, so that a missing digest is noticed


class DatasetWriter(Resumable):
    """Writer of a dataset: append rows, then call `finish`."""

    def __init__(self, out: Path, layout: BlockLayout, limit: int, source: Mapping[str, JSON]):
        super().__init__(out, layout, len(_head(layout, 1)), limit, source)

    def finish(self, members: Members, attributes: Mapping[str, object]) -> None:
        if self.complete:
            return
        about = {
            **DatasetAttributes.head(),
            "digests": DIGESTS,
            "count": self.rows,
            "payload_sha256": self.state.sha256,
            **attributes,
        }
        stored = {key: value for key, value in sorted(about.items()) if value is not None}
        with writing(self.out):
            end = self.offset + self.size
            write_all(self.handle, _head(self.layout, self.rows), 0)
            os.ftruncate(self.handle, end)
            # HDF5 prints a traceback when it meets a full disk while closing a file, so the disk space is allocated first.
            tail = sum(64 * len(value) if isinstance(value, list) else value.nbytes for value in members.values())
            os.posix_fallocate(self.handle, end, tail + (1 << 12))
            with h5py.File(self.partial, "r+", libver=LIBVER, locking=False) as file:
                # Sorted, so that equal contents give equal bytes.
                for name, value in sorted(members.items()):
                    if isinstance(value, list):
                        file.create_dataset(name, (len(value),), h5py.string_dtype(), value)
                    else:
                        file[name] = value
                # Text may exceed HDF5's limit of 64 KiB for attributes, because HDF5 stores text outside the attribute.
                file.attrs.update(stored)
                file.attrs["contents_sha256"] = contents_digest(stored, members)
            self.name()


def _head(layout: BlockLayout, rows: int) -> bytes:
    """Return the bytes of an HDF5 file before its block."""
    with tempfile.NamedTemporaryFile() as scratch:
        with h5py.File(scratch.name, "w", libver=LIBVER) as file:
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            block = file.create_dataset(layout.name, (rows, *layout.row), layout.dtype, dcpl=plan, track_times=False)
            offset = block.id.get_offset()
        return scratch.read(offset)
