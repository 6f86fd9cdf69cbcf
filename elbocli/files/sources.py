"""What `elbo prep` packs: the images of one or several sources in a fixed order, each with a class.

A source is a folder, a tar (of tars), a zip, an array file or another dataset. Files are in the byte order of their
paths, whatever order an archive has them in, so that a folder and an archive of it are the same source.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elbocli.core.draws import Stream
from elbocli.errors import DataError, UsageError
from elbocli.files import arrays
from elbocli.files.labels import Word, edm_labels, read_classes_file, read_labels_file, sidecar_labels
from elbocli.files.listing import Entry, is_tar, list_folder, list_tar, list_zip, printable, unpacker
from elbocli.files.places import Place

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
SPLITS = ("train", "val")
Complain = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Images in a fixed order. files: paths below their source; labels: an index into class_names for each.

    prefixes, owners: how a message names image i: prefixes[owners[i]] + files[i]. in_order: whether places can only
    be read one after another. notes: what a person should know of how the classes were found.
    """

    files: list[str]
    labels: list[int]
    class_names: list[str]
    places: Sequence[Place]
    prefixes: list[str]
    owners: Sequence[int]
    in_order: bool = False
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def shown(self, index: int) -> str:
        """An image's name for people."""
        return printable(self.prefixes[self.owners[index]] + self.files[index])

    def take(self, chosen: Sequence[int]) -> Source:
        """Only those images, in that order. Raises UsageError when they can only be read in their own."""
        if self.in_order and any(b < a for a, b in pairwise(chosen)):
            raise UsageError(
                f"{self.prefixes[0].rstrip(':/ ')}: a compressed array can only be read in its order; save it with numpy.savez"
            )
        return replace(
            self,
            files=[self.files[i] for i in chosen],
            labels=[self.labels[i] for i in chosen],
            places=[self.places[i] for i in chosen],
            owners=[self.owners[i] for i in chosen],
        )


@dataclass
class _Found:
    """What one source holds. words: classes it gives by itself; classes: all of them, in its own order."""

    prefix: str
    names: list[str]
    places: Sequence[Place]
    words: Sequence[Word] | None
    stem: str
    classes: list[str] | None = None
    in_order: bool = False
    notes: list[str] = field(default_factory=list)


def open_source(
    roots: Sequence[Path] | Path,
    *,
    labels: Path | None = None,
    classes: Path | None = None,
    complain: Complain | None = None,
) -> Source:
    """The images of one or several sources, in their order.

    labels, classes: files that say which class each image has, and all classes in order (see labels.py).
    complain: told of damaged archives; without it they raise. Raises DataError, also when nothing is there.
    """
    roots = [roots] if isinstance(roots, Path) else list(roots)
    complain = complain or _stop
    found = [_find(root, labels is not None, complain) for root in roots]
    if len(found) > 1:
        for part in found:
            _several(part)
    names = [name for part in found for name in part.names]
    if not names:
        raise DataError(f"{roots[0]}: no files inside; expected images, or folders of images named by class")
    notes = [note for part in found for note in part.notes]
    bare = False
    if labels is not None:
        words, bare = read_labels_file(labels, names)
    else:
        words = [word for part in found for word in _words(part)]
    numbers, class_names, dropped = _classes(words, found, classes, bare, notes)
    source = Source(
        names,
        numbers,
        class_names,
        [place for part in found for place in part.places],
        [part.prefix for part in found],
        [owner for owner, part in enumerate(found) for _ in part.names],
        any(part.in_order for part in found),
        notes,
    )
    if not dropped:
        return source
    kept = [index for index, number in enumerate(numbers) if number >= 0]
    if not kept:
        raise DataError(f"{classes}: lists none of the classes of these images ({', '.join(map(str, dropped[:3]))}, …)")
    notes.append(
        f"{len(names) - len(kept)} images of {len(dropped)} classes that {classes} doesn't list are left out "
        f"({', '.join(map(str, dropped[:3]))}{', …' if len(dropped) > 3 else ''})"
    )
    return source.take(kept)


def choose(
    source: Source,
    *,
    subset: tuple[str, float] | None = None,
    shuffle_seed: int | None = None,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> Source:
    """Some of the images: a held-out share of each class or the rest, then shuffled, then the first, then a shard.

    subset: ('val', F) is a share F of each class, always the same one; ('train', F) is everything else.
    shard: (i, N), counting from 1: the i-th of N stretches. Raises DataError when nothing is left.
    """
    chosen: list[int] = list(range(len(source)))
    if subset is not None:
        chosen = _split(source.labels, *subset)
    if shuffle_seed is not None:
        order = Stream(shuffle_seed, "prep-shuffle").permutation(0, len(chosen))
        chosen = [chosen[i] for i in order]
    if limit is not None:
        chosen = chosen[:limit]
    if shard is not None:
        index, count = shard
        chosen = chosen[(index - 1) * len(chosen) // count : index * len(chosen) // count]
    if not chosen:
        raise DataError(f"no images are left of {len(source)} after --subset, --limit and --shard")
    return source if len(chosen) == len(source) and shuffle_seed is None else source.take(chosen)


def _split(labels: Sequence[int], which: str, share: float) -> list[int]:
    array, held_out = np.asarray(labels), np.zeros(len(labels), bool)
    stream = Stream(0, "prep-subset")
    for label in np.unique(array):
        rows = np.flatnonzero(array == label)
        held_out[rows[stream.permutation(int(label), len(rows))[: round(share * len(rows))]]] = True
    return np.flatnonzero(held_out if which == "val" else ~held_out).tolist()


def _stop(trouble: str) -> None:
    raise DataError(trouble + ", or add --on-error skip")


# One source


def _find(root: Path, any_depth: bool, complain: Complain) -> _Found:
    """any_depth: folders are not classes, because something else says the classes."""
    if root.is_dir():
        entries = list(list_folder(root, complain))
        stem = root.resolve().name
        return _files(entries, f"{root}/", stem, root.is_dir(), any_depth)
    try:
        if not root.exists():
            raise DataError(f"{root}: no such folder or file; expected images: a folder, tar, zip, .npz, .npy or dataset")
        if not root.is_file():
            raise DataError(f"{root}: not a regular file or folder")
        with open(root, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{root}: can't be read: {error.strerror}") from error
    if head.startswith(HDF5_MAGIC):
        return _rows(root, arrays.open_dataset(root))
    if head.startswith(b"\x93NUMPY"):
        return _rows(root, arrays.open_npy(root))
    if head.startswith(b"PK"):
        if arrays.is_array(root):
            return _rows(root, arrays.open_npz(root))
        return _files(list(list_zip(root)), f"{root}: ", root.stem, False, any_depth)
    if is_tar(root):
        return _files(list(list_tar(str(root), complain)), f"{root}: ", root.stem, False, any_depth)
    program = unpacker(head)
    if program is not None:
        raise DataError(
            f"{root}: is compressed, so that its images can't be read one by one; unpack it once with '{program} {root.name}' "
            "(images hardly get larger by it)"
        )
    if root.suffix == ".tar":
        raise DataError(f"{root}: is called .tar, but begins like no tar: damaged, or something else; get it again")
    raise DataError(f"{root}: is a file, but no tar, zip, .npz, .npy or dataset; expected these or a folder of images")


def _rows(root: Path, rows: arrays.Rows) -> _Found:
    words: list[Word] | None = None
    if rows.labels is not None:
        words = [rows.class_names[label] for label in rows.labels] if rows.class_names else list(rows.labels)
    return _Found(f"{root}: ", rows.files, rows.places, words, root.stem, rows.class_names or None, rows.in_order)


def _order(name: str) -> tuple[tuple[bool, bytes], ...]:
    """Byte order by parts of the path, files before folders."""
    *folders, last = os.fsencode(name).split(b"/")
    return (*((True, folder) for folder in folders), (False, last))


def _files(entries: list[Entry], prefix: str, stem: str, folder: bool, any_depth: bool) -> _Found:
    if not folder:
        entries, stem = _descend(entries, stem)
    entries.sort(key=lambda entry: _order(entry[0]))
    edm = next((place for name, place in entries if name == "dataset.json"), None)
    if edm is not None:
        entries = [entry for entry in entries if entry[0] != "dataset.json"]
        names = [name for name, _ in entries]
        words = edm_labels(edm, names, f"{prefix}dataset.json")
        return _Found(prefix, names, [place for _, place in entries], words or [stem] * len(names), stem)
    indices, beside = sidecar_labels(entries, prefix)
    entries = [entries[i] for i in indices]
    notes: list[str] = []
    if beside is None and not any_depth:
        entries = _without_loose(entries, prefix, notes)
    names = [name for name, _ in entries]
    return _Found(prefix, names, [place for _, place in entries], beside, stem, _folders(prefix, folder, names), notes=notes)


def _descend(entries: list[Entry], stem: str) -> tuple[list[Entry], str]:
    """An archive of one folder is that folder."""
    while entries:
        tops = {name.partition("/")[0] if "/" in name else "" for name, _ in entries}
        top = tops.pop()
        if tops or not top:
            break
        entries, stem = [(name[len(top) + 1 :], place) for name, place in entries], top
    return entries, stem


def _without_loose(entries: list[Entry], prefix: str, notes: list[str]) -> list[Entry]:
    """Without papers that lie beside class folders. Raises DataError when there are images beside them."""
    loose = [name for name, _ in entries if "/" not in name]
    if not loose or len(loose) == len(entries):
        return entries
    Image.init()
    pictures = [name for name in loose if Path(name).suffix.lower() in Image.EXTENSION]
    folder = next(name for name, _ in entries if "/" in name).partition("/")[0]
    if pictures:
        raise DataError(
            f"{prefix.rstrip(': /')}: holds both class folders ({printable(folder)}, …) and loose files ({printable(pictures[0])}, …); move one kind away"
        )
    notes.append(f"{prefix}{printable(loose[0])}{f' and {len(loose) - 1} more' if len(loose) > 1 else ''} left out: not in a class folder")
    return [entry for entry in entries if "/" in entry[0]]


def _folders(prefix: str, folder: bool, names: list[str]) -> list[str] | None:
    """All class folders, those without images too; None for a flat source."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if folder and (tops or not names):
        with os.scandir(prefix) as found:
            tops |= {entry.name for entry in found if entry.is_dir() and not entry.name.startswith(".")}
    return sorted(tops, key=os.fsencode) or None


def _several(part: _Found) -> None:
    """Among several sources, a flat one is a class folder (a class tar) or a shard: its name comes first."""
    if part.words is None and part.classes is None:
        part.classes = [part.stem]
        part.words = [part.stem] * len(part.names)
    if not any("/" in name for name in part.names):
        part.prefix = part.prefix.rpartition(part.stem)[0] if part.prefix.endswith(f"{part.stem}/") else part.prefix
        part.names = [f"{part.stem}/{name}" for name in part.names]


def _words(part: _Found) -> Sequence[Word]:
    """The class of each image of a source."""
    if part.words is not None:
        return part.words
    if part.classes is None:
        return [part.stem] * len(part.names)
    return [name.partition("/")[0] for name in part.names]


# Classes


def _classes(
    words: Sequence[Word], found: list[_Found], listed: Path | None, bare: bool, notes: list[str]
) -> tuple[list[int], list[str], list[Word]]:
    """(a number for each image, −1 where its class isn't listed; class names; the classes not listed)."""
    kinds = {type(word) for word in words}
    if len(kinds) > 1:
        number = next(word for word in words if isinstance(word, int))
        name = next(word for word in words if isinstance(word, str))
        raise DataError(f"some images have a number for a class ({number}), others a name ({name!r}); give one kind")
    if kinds == {int}:
        return _numbered(np.array(words, np.int64), listed, bare, notes)
    texts = [str(word) for word in words]
    known = [part.classes for part in found if part.classes]
    if listed is None:
        own = known[0] if len(found) == 1 and known and set(texts) <= set(known[0]) else None
        keys = names = own or sorted({*texts, *(_unused(known, found, texts))}, key=os.fsencode)
    else:
        classes = read_classes_file(listed, set(texts))
        keys, names = classes.keys, classes.names
        empty = [key for key in keys if key not in set(texts)]
        if empty and len(empty) < len(keys):
            notes.append(f"{listed}: {len(empty)} of its {len(keys)} classes have no images here ({empty[0]}, …)")
    index = {key: number for number, key in enumerate(keys)}
    numbers = [index.get(text, -1) for text in texts]
    dropped: list[Word] = sorted({text for text in texts if text not in index})
    return numbers, list(names), dropped


def _unused(known: list[list[str]], found: list[_Found], texts: list[str]) -> set[str]:
    """Classes without images, where folders are the classes."""
    by_folder = all(part.words is None or part.classes for part in found)
    every = {name for names in known for name in names}
    return every if by_folder and set(texts) <= every else set()


def _numbered(
    numbers: Any, listed: Path | None, bare: bool, notes: list[str]
) -> tuple[list[int], list[str], list[Word]]:
    """Numbers count from 0; in a bare list of classes without a 0 they count from 1, as ILSVRC's do."""
    low, high = int(numbers.min()), int(numbers.max())
    first = int(bare and low > 0)
    if first:
        notes.append(f"no class is 0: they are taken to count from 1, {first} to {high}")
    if listed is not None:
        names = read_classes_file(listed, set()).names
        if high - first >= len(names):
            raise DataError(f"{listed}: {len(names)} classes, but an image has class {high}")
    elif low < 0 or high - first >= max(1000, 10 * len(numbers)):
        wrong = low if low < 0 else high
        raise DataError(f"an image has class {wrong}, which can't be for {len(numbers)} images; check the labels")
    else:
        names = [str(number) for number in range(first, high + 1)]
    return (numbers - first).tolist(), names, []
