"""One source: which of its files are images, in which order, and which class each has by itself.

A folder, a tar or a zip may hold class folders or none, EDM's dataset.json, or webdataset's files beside each image;
an array or a dataset has its own labels.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from elbocli.errors import DataError
from elbocli.files.opening import open_file
from elbocli.files.recognise import HDF5_MAGIC, recognise
from elbocli.files.statistics import is_pickle
from elbocli.images import arrays, known_sets, parquet
from elbocli.images.archives import Complain, Entry, is_tar, list_folder, list_tar, list_zip
from elbocli.images.classes import some
from elbocli.images.image_refs import ImageRef, Span
from elbocli.images.labels import Word, edm_labels, sidecar_labels
from elbocli.images.packed import first_bytes_inside, program_for
from elbocli.images.tar_headers import begins_like_tar

NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK"
KNOWN = (HDF5_MAGIC, NPY_MAGIC, ZIP_MAGIC, parquet.MAGIC)
"""Beginnings of files that are packed."""
NO_PICTURES = {"EPS", "HDF5", "BUFR", "GRIB", "MPEG"}
"""Formats that Pillow knows by name only, or reads by another program."""
OWN = re.compile(r"\.(h5|h5\.lock|h5\.partial(\.\w+)?|skipped\.jsonl)$")


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
    if root.is_dir():
        if recognise(root / "config.yaml") == "a config of a run":
            draw = f"elbo sample {shlex.quote(str(root))} -n 1000 -o samples.h5"
            raise DataError(
                f"{root}: is a run, and the pictures in it are its previews; draw images from it with '{draw}', which is a "
                "dataset already"
            )
        entries = _without(ours, list_folder(root, complain))
        return _files(entries, f"{root}/", root.resolve().name, any_depth, among)
    try:
        if not root.exists():
            expected = "expected images: a folder, tar, zip, .npz, .npy, IDX, CIFAR, parquet or dataset"
            raise DataError(f"{root}: no such folder or file; {expected}")
        if not root.is_file():
            raise DataError(f"{root}: not a regular file or folder")
        with open_file(root) as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{root}: can't be read: {error.strerror}") from error
    if head.startswith(HDF5_MAGIC):
        return _rows(root, arrays.open_dataset(root))
    if head.startswith(NPY_MAGIC):
        return _rows(root, arrays.open_npy(root))
    if head.startswith(ZIP_MAGIC):
        if arrays.is_array(root):
            return _rows(root, arrays.open_npz(root))
        return _files(list(list_zip(root)), f"{root}: ", root.stem, any_depth, among)
    if is_tar(root):
        return _files(list(list_tar(str(root), complain)), f"{root}: ", root.stem, any_depth, among)
    if (found := known_sets.in_file(root)) is not None:
        return _known(found, root.stem)
    raise DataError(f"{root}: {_no_source(root, head)}")


def _no_source(root: Path, head: bytes) -> str:
    """Say why a file is no source, and what to do."""
    if program := program_for(head):
        inside = first_bytes_inside(Span(str(root)))
        if inside and not inside.startswith(KNOWN) and not begins_like_tar(inside):
            return (
                "is compressed, and what is in it is no archive, array or dataset; expected these or a folder of images"
            )
        return (
            f"is compressed, so that its images can't be read one by one; unpack it once with '{program} {shlex.quote(str(root))}', "
            "then pack what comes out (images hardly get larger by it)"
        )
    if is_pickle(root):
        return "a pickle, which is never opened, because that can run code; name the images themselves"
    if root.suffix == ".tar":
        return "is called .tar, but begins like no tar: damaged, or something else; get it again"
    if is_picture(root.name):
        return "is one image; name the folder that it lies in"
    return (
        "is a file, but no tar, zip, .npz, .npy, IDX, CIFAR, parquet or dataset; expected these or a folder of images"
    )


def _without(ours: Sequence[Path], entries: Iterable[Entry]) -> list[Entry]:
    """Leave out --labels and --classes, and datasets: OUT may lie in the folder that it is made of."""
    own = {path.name: path for path in ours}

    def is_ours(name: str, ref: ImageRef) -> bool:
        if OWN.search(name):
            return True
        mine = own.get(name.rpartition("/")[2])
        return mine is not None and isinstance(ref, Span) and Path(ref.path).resolve() == mine.resolve()

    return [(name, ref) for name, ref in entries if not is_ours(name, ref)]


def _rows(root: Path, rows: arrays.ArrayImages) -> Listing:
    return _listed(rows, f"{root}: ", root.stem)


def _listed(rows: arrays.ArrayImages, prefix: str, stem: str) -> Listing:
    names, numbers = list(rows.class_names), rows.labels
    words = [names[label] for label in numbers] if names and numbers is not None else numbers
    numbers = numbers if names else None
    listing = Listing(prefix, rows.files, rows.refs, words, stem, names or None, numbers, rows.in_order)
    return replace(listing, notes=list(rows.notes))


def _known(found: known_sets.KnownSet, stem: str) -> Listing:
    prefix = found.where if found.where.endswith(("/", " ")) else f"{found.where}: "
    return _listed(found.images, prefix, stem)


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
    if (
        not any(is_picture(name) for name, _ in entries)
        and (found := known_sets.in_folder(entries, prefix)) is not None
    ):
        return _known(found, stem)
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
    listing = Listing(prefix, names, [ref for _, ref in entries], beside, stem, own, flat=flat, notes=notes)
    return replace(listing, captioned=captioned and beside is None)


def _descend(entries: list[Entry], folders: set[str]) -> tuple[list[Entry], set[str], list[str], bool]:
    """Enter a folder that is alone: an archive may be made of one, and a class may be.

    Returns (its entries, its folders, the folders on the way to it, whether the last is a class by itself).
    """
    tops: list[str] = []
    while entries:
        found = {name.partition("/")[0] if "/" in name else "" for name, _ in entries}
        found |= {name.partition("/")[0] for name in folders}
        if len(found) > 1 or "" in found:
            break
        top = found.pop()
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
    return f"{shown[0]}{f' and {len(shown) - 1} more' if len(shown) > 1 else ''} left out: {why}"


def named_among_others(part: Listing) -> None:
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
