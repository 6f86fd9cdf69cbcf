"""One source: its images in order, and the class that the source itself gives each.

A folder, a tar or a zip may hold class folders or none, EDM's dataset.json, webdataset's files beside each image, or a data
set in the files that it is published as; an array or a dataset has its own labels.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from elbocli.errors import DataError, ElboError
from elbocli.files.statistics import is_pickle
from elbocli.images.image_refs import ImageRef, Span, ZipEntry
from elbocli.images.kinds import cifar, idx, parquet
from elbocli.images.labels import edm_labels, sidecar_labels, some
from elbocli.images.registry import HEAD, Complain, Images, Word, images_of, kind_of, kinds

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
"""Beginnings of gzip, bzip2, xz, zstd, 7z and rar files."""
NO_PICTURES = {"EPS", "HDF5", "BUFR", "GRIB", "MPEG"}
"""Formats that Pillow knows by name only, or reads by another program."""
OWN = re.compile(r"\.(h5|h5\.lock|h5\.partial(\.\w+)?|skipped\.jsonl)$")
SET_FILES = 4096
"""A folder with more files is no published set."""
BATCH = re.compile(r"(data_batch_\d+|test_batch|train|test)(\.bin)?")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "t10k", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
"""Words of a file's name → the part of the dataset that it holds."""
Entry = tuple[str, ImageRef]


@dataclass
class Listing:
    """The images of one source, named prefix + name, in order.

    words: the class that the source itself gives each, None for an image without one. classes: all of them. numbers:
    a dataset's classes, as indices into `classes`. stem: the source's name, the class of its images if it gives none.
    in_order: whether refs can only be read one after another. flat: whether it has no class folders. captioned: whether
    files beside the images say other things than classes.
    """

    prefix: str
    names: list[str]
    refs: Sequence[ImageRef]
    words: Sequence[Word | None] | None
    stem: str
    classes: list[str] | None = None
    numbers: list[int] | None = None
    in_order: bool = False
    flat: bool = False
    captioned: bool = False
    notes: list[str] = field(default_factory=list)


def list_source(root: Path, any_depth: bool, among: bool, complain: Complain, ours: Sequence[Path]) -> Listing:
    """Find the images of a source. any_depth: folders are not classes, because something else says the classes.

    among: it is one of several. ours: files that are no images. complain: gets the trouble of damaged archives.
    Raises DataError and FormatError when nothing can be packed.
    """
    if not root.is_dir():
        if not root.exists():
            raise DataError(f"{root}: no such folder or file; expected images: a folder, {_kinds()}")
        if not root.is_file():
            raise DataError(f"{root}: not a regular file or folder")
    kind = kind_of(root)
    if kind is None:
        raise DataError(f"{root}: {_no_source(root)}")
    prefix, stem = (f"{root}/", root.resolve().name) if root.is_dir() else (f"{root}: ", root.stem)
    if not kind.tree:
        return _of_images(images_of(kind.open(root)), prefix, stem)
    entries = [(name, ref) for name, _, ref in kind.open(root, complain)]
    return _files(_without(ours, entries), prefix, stem, any_depth, among)


def _kinds() -> str:
    return ", ".join(kind.name for kind in kinds() if kind.name != "folder")


def _no_source(root: Path) -> str:
    """Say why a file is no source, and what to do."""
    head = Span(str(root)).read(HEAD)
    if head.startswith(COMPRESSED):
        return "is compressed; unpack it once, then pack what comes out (images hardly get larger by it)"
    if is_pickle(root):
        return "a pickle, which is never opened, because that can run code; name the images themselves, or CIFAR's binary version"
    if root.suffix == ".tar":
        return "is called .tar, but begins like no tar: damaged, or something else; get it again"
    if is_picture(root.name):
        return "is one image; name the folder that it lies in"
    return f"is a file, but none of {_kinds()}; expected these or a folder of images"


def _without(ours: Sequence[Path], entries: Iterable[Entry]) -> list[Entry]:
    """Leave out --labels and --classes, and datasets: OUT may lie in the folder that it is made of."""
    own = {path.name: path for path in ours}

    def is_ours(name: str, ref: ImageRef) -> bool:
        if not isinstance(ref, Span) or ref.size >= 0:
            return False
        mine = own.get(name.rpartition("/")[2])
        return bool(OWN.search(name)) or (mine is not None and Path(ref.path).resolve() == mine.resolve())

    return [(name, ref) for name, ref in entries if not is_ours(name, ref)]


def _of_images(images: Images, prefix: str, stem: str) -> Listing:
    names, labels, classes = list(images.names), images.labels, list(images.classes)
    listing = Listing(prefix, names, images.refs, labels, stem, in_order=images.in_order, notes=list(images.notes))
    if classes and labels is not None:
        numbers = listing.numbers = [int(label) for label in labels if label is not None]
        listing.words, listing.classes = [classes[number] for number in numbers], classes
    return listing


def _order(name: str) -> bytes:
    """A key that sorts paths by the bytes of their parts, a folder's files before its folders.

    It is one short object, because a million are held at once.
    """
    folders, slash, last = os.fsencode(name).rpartition(b"/")
    return (b"\1" + folders.replace(b"/", b"\0\1") + b"\0" if slash else b"") + b"\0" + last


def _files(entries: list[Entry], prefix: str, stem: str, any_depth: bool, among: bool) -> Listing:
    folders = {name for name, _ in entries if name.endswith("/")}
    entries = [entry for entry in entries if not entry[0].endswith("/")]
    entries, folders, tops, alone = _descend(entries, folders)
    # One of several that has images of its own is a class, with files further down; alone, that would be a guess.
    alone = alone or (among and any("/" not in name and is_picture(name) for name, _ in entries))
    prefix, stem = prefix + "".join(f"{top}/" for top in tops), tops[-1] if tops else stem
    if not any(is_picture(name) for name, _ in entries) and (images := _published(entries, prefix)) is not None:
        return _of_images(*images, stem)
    entries.sort(key=lambda entry: _order(entry[0]))
    arrays_only = [name for name, _ in entries if name != "dataset.json"]
    if arrays_only and all(name.endswith(".npy") for name in arrays_only):  # skipping them would leave nothing
        raise DataError(
            f"{prefix.rstrip(': /')}: holds an array (.npy) for each image ({some(arrays_only)}), such as the latents that EDM2's "
            "dataset_tool.py makes, and no images; pack the images themselves, for latents of them with --latents VAE "
            "--latent-convention edm2"
        )
    edm = next((ref for name, ref in entries if name == "dataset.json"), None)
    if edm is not None:
        entries = [entry for entry in entries if entry[0] != "dataset.json"]
        names = [name for name, _ in entries]
        words = edm_labels(edm, names, f"{prefix}dataset.json")
        return Listing(prefix, names, [ref for _, ref in entries], words or [stem] * len(names), stem)
    indices, beside, captioned = sidecar_labels(entries, prefix)
    entries = [entries[i] for i in indices]
    notes: list[str] = []
    if beside is None and not any_depth and not alone:
        entries = _without_loose(entries, prefix, notes)
    names = [name for name, _ in entries]
    classes = {name.partition("/")[0] for name in names if "/" in name}
    flat = alone or not classes
    classes |= {name.partition("/")[0] for name in folders}
    own = None if flat or beside is not None else sorted(classes, key=os.fsencode)
    captioned = captioned and beside is None
    return Listing(
        prefix, names, [ref for _, ref in entries], beside, stem, own, flat=flat, captioned=captioned, notes=notes
    )


def _descend(entries: list[Entry], folders: set[str]) -> tuple[list[Entry], set[str], list[str], bool]:
    """Enter a folder that is alone: an archive may be made of one, and a class may be.

    Returns (its entries, its folders, the folders on the way to it, whether the last is a class by itself).
    """
    tops: list[str] = []
    while entries:
        first = {name.partition("/")[0] if "/" in name else "" for name, _ in entries}
        first |= {name.partition("/")[0] for name in folders}
        if len(first) > 1 or "" in first:
            break
        top = first.pop()
        tops.append(top)
        entries = [(name[len(top) + 1 :], ref) for name, ref in entries]
        folders = {name[len(top) + 1 :] for name in folders} - {""}
        loose = [name for name, _ in entries if "/" not in name]
        if len(loose) == len(entries) or any(map(is_picture, loose)):
            return entries, folders, tops, True
    return entries, folders, tops, False


def is_picture(name: str) -> bool:
    """Whether a name is one for an image."""
    Image.init()
    stem, _, suffix = name.rpartition("/")[2].rpartition(".")  # a Path takes seconds for a million names
    kind = Image.EXTENSION.get(f".{suffix.lower()}") if stem else None
    return kind in Image.OPEN and kind not in NO_PICTURES


def _without_loose(entries: list[Entry], prefix: str, notes: list[str]) -> list[Entry]:
    """Leave out papers beside class folders. Raises DataError when there are images beside them."""
    loose = [name for name, _ in entries if "/" not in name]
    if not loose or len(loose) == len(entries):
        return entries
    pictures = [name for name in loose if is_picture(name)]
    if pictures:
        folder = next(name for name, _ in entries if "/" in name).partition("/")[0]
        both = f"both class folders ({folder}, …) and loose images ({some(pictures)})"
        remedy = "move one kind away, or say by --labels which class each image has"
        raise DataError(f"{prefix.rstrip(': /')}: holds {both}; {remedy}")
    notes.append(left_out([prefix + name for name in loose], "not in a class folder"))
    return [entry for entry in entries if "/" in entry[0]]


def left_out(shown: list[str], why: str) -> str:
    """A note that files are not taken, and why."""
    return f"{shown[0]}{_and_more(shown)} left out: {why}"


def _and_more(names: Sequence[object]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def name_among_others(part: Listing) -> None:
    """Put a source's name before its images' names: among several, a flat one is a class folder, class tar or shard."""
    if part.words is None and part.classes is None:
        part.classes = [part.stem]
        part.words = [part.stem] * len(part.names)
    if part.flat or not any("/" in name for name in part.names):
        part.prefix = part.prefix.removesuffix(f"{part.stem}/")
        part.names = [f"{part.stem}/{name}" for name in part.names]


def words_of(part: Listing) -> Sequence[Word | None]:
    """The class of each image of a source, None where it has none. Raises DataError when two classes share a name."""
    if part.numbers is not None and part.classes and len(set(part.classes)) < len(part.classes):
        twice = next(name for name in part.classes if part.classes.count(name) > 1)
        raise DataError(f"{part.prefix}two of its classes are called {twice!r}; pack it alone, without --classes")
    if part.words is not None:
        return part.words
    if part.classes is None:
        return [part.stem] * len(part.names)
    return [name.partition("/")[0] for name in part.names]


# Data sets in the files that they are published as: IDX (MNIST), batches (CIFAR), parquet (Hugging Face's `datasets`). Of
# several parts the training images are taken, and the others are named.


class _SetFile(NamedTuple):
    """A file of a published set. kind: idx, cifar or parquet."""

    name: str
    ref: ImageRef
    kind: str

    @property
    def is_whole(self) -> bool:
        """Tell whether the file lies on disk and not in an archive."""
        return isinstance(self.ref, Span) and self.ref.size < 0

    @property
    def split(self) -> str:
        """The part of the set, by the words of its name; '' where it says nothing."""
        words = re.split(r"[^a-z0-9]+", self.name.lower().replace("data_batch", "train"))
        return next((SPLITS[word] for word in words if word in SPLITS), "")


def _set_kind(name: str, ref: ImageRef) -> str:
    """The kind of a file that may be one of a published set; '' when it is none, or can't be read."""
    with contextlib.suppress(ElboError, OSError):
        head = bytes(ref.read(HEAD))
        if idx.dimensions(head) == 3:
            return "idx"
        if head.startswith(parquet.MAGIC):
            return "parquet"
        if BATCH.fullmatch(name.rpartition("/")[2]) and cifar.is_batch(ref, _size(ref)):
            return "cifar"
    return ""


def _size(ref: ImageRef) -> int:
    if isinstance(ref, ZipEntry):
        return ref.info.file_size
    return (ref.size if ref.size >= 0 else Path(ref.path).stat().st_size) if isinstance(ref, Span) else 0


def _published(entries: Sequence[Entry], prefix: str) -> tuple[Images, str] | None:
    """Open a published set among the files of a folder or an archive; None when there is none.

    Returns (its images, what stands before their names in messages). Raises DataError when it holds several sets, and for
    damaged files.
    """
    if len(entries) > SET_FILES:
        return None
    twice = {f"{name}.gz" for name, _ in entries}
    found = (_SetFile(name, ref, _set_kind(name, ref)) for name, ref in entries if name not in twice)
    files = sorted((file for file in found if file.kind), key=_batch_order)
    if not files:
        return None
    taken = [file for file in files if file.split == "train"] or files
    first = taken[0]
    folder, slash, base = first.name.rpartition("/")
    folder += slash
    sets = {(file.kind, file.split, file.name.rpartition("/")[0]) for file in taken}
    if len(sets) > 1 or (first.kind == "idx" and len(taken) > 1):
        names = ", ".join(prefix + file.name for file in taken[:4])
        how = "name the files of one" if first.is_whole else "unpack the archive and name the files of one"
        raise DataError(f"{prefix.rstrip(': /')}: holds several sets of images ({names}); {how}")
    beside = {name.removeprefix(folder): ref for name, ref in entries if name.startswith(folder)}
    where = prefix + folder
    if first.kind == "idx":
        images, where = idx.open_idx(base, first.ref, beside, where + base), f"{where}{base}: "
    elif first.kind == "cifar":
        images = cifar.open_batches([(file.name.removeprefix(folder), file.ref) for file in taken], beside, where)
    elif first.is_whole:
        images = parquet.open_parquet([file.ref.path for file in taken if isinstance(file.ref, Span)])
    else:
        raise DataError(f"{prefix}{first.name}: a parquet file in an archive can't be read; unpack the archive first")
    others = [file for file in files if file not in taken]
    if others:
        left = f"{prefix}{others[0].name}"
        how = f"elbo prep {left} OTHER.h5" if others[0].is_whole else "unpack the archive and name them"
        images.notes.append(
            f"the training images are taken: {prefix}{first.name}{_and_more(taken)}; left out: {left}{_and_more(others)}; "
            f"to pack these: {how}"
        )
    return images, where


def _batch_order(file: _SetFile) -> tuple[str, int, str]:
    """A key that sorts data_batch_10 behind data_batch_9."""
    number = re.search(r"_(\d{1,9})(\.bin)?$", file.name)
    return (file.name[: number.start()] if number else file.name, int(number[1]) if number else 0, file.name)
