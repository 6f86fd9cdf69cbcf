"""What `elbo prep` packs: the images of one or several sources in a fixed order, each with a class.

A source is a folder, a tar (of tars), a zip, an array file or another dataset. Files are in the byte order of their
paths, whatever order an archive has them in, so that a folder and an archive of it are the same source.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from elbocli.core.draws import Stream
from elbocli.errors import DataError, UsageError
from elbocli.files import arrays
from elbocli.files.classes import assign, by_meta, is_meta, read_meta, some
from elbocli.files.labels import Word, edm_labels, read_labels_file, sidecar_labels
from elbocli.files.listing import Entry, is_tar, list_folder, list_tar, list_zip, unpacker
from elbocli.files.places import Place, Span

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
NO_PICTURES = {"EPS", "HDF5", "BUFR", "GRIB", "MPEG"}
"""What Pillow knows by name only, or not without another program."""
OWN = re.compile(r"\.(h5|h5\.lock|h5\.partial(\.\w+)?|skipped\.jsonl)$")
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
        return self.prefixes[self.owners[index]] + self.files[index]

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
    """What one source holds. words: classes it gives by itself, None for an image without one; classes: all of them.

    numbers: classes as indices into `classes`, of a dataset. flat: no folders that are classes. captioned: files lie
    beside the images that say no class.
    """

    prefix: str
    names: list[str]
    places: Sequence[Place]
    words: Sequence[Word | None] | None
    stem: str
    classes: list[str] | None = None
    numbers: list[int] | None = None
    in_order: bool = False
    flat: bool = False
    captioned: bool = False
    notes: list[str] = field(default_factory=list)


def open_source(
    roots: Sequence[Path] | Path,
    *,
    labels: Path | None = None,
    classes: Path | None = None,
    complain: Complain | None = None,
) -> Source:
    """The images of one or several sources, in their order.

    labels, classes: files that say which class each image has, and all classes in order (see labels.py, classes.py).
    complain: told of damaged archives; without it they raise. Raises DataError, also when nothing is there.
    """
    roots = [roots] if isinstance(roots, Path) else list(roots)
    ours = [path for path in (labels, classes) if path is not None]
    found = [_find(root, labels is not None, len(roots) > 1, complain or _stop, ours) for root in roots]
    if len(found) > 1:
        for part in found:
            _several(part)
    names = [name for part in found for name in part.names]
    if not names:
        raise DataError(f"{roots[0]}: no files inside; expected images, or folders of images named by class")
    source = Source(
        names,
        [-1] * len(names),
        [],
        [place for part in found for place in part.places],
        [part.prefix for part in found],
        [owner for owner, part in enumerate(found) for _ in part.names],
        any(part.in_order for part in found),
        [note for part in found for note in part.notes],
    )
    if labels is None and classes is None and len(found) == 1 and found[0].numbers is not None:
        return replace(source, labels=found[0].numbers, class_names=list(found[0].classes or ()))
    bare = False
    if labels is not None:
        words, bare = read_labels_file(labels, names)
    else:
        words = [word for part in found for word in _words(part)]
    return _classified(*_complete(source, words, labels), found, labels, classes, bare)


def _classified(
    source: Source, words: list[Word], found: list[_Found], labels: Path | None, classes: Path | None, bare: bool
) -> Source:
    """With labels from the images' words for their classes, without those whose class isn't listed."""
    notes = source.notes
    words = _of_one_kind(source, words, labels, classes, bare)
    own = found[0].classes if len(found) == 1 and labels is None else None
    unused = set() if labels is not None else _unused(found, words)
    numbers, class_names, dropped = assign(words, own, unused, classes, bare, notes)
    if labels is None and len(class_names) > 1 and any(part.captioned for part in found):
        notes.append("no class lies beside the images (.cls or .json), so their folders or archives are the classes")
    source = replace(source, labels=numbers, class_names=class_names)
    if not dropped:
        return source
    kept = [index for index, number in enumerate(numbers) if number >= 0]
    if not kept:
        raise DataError(f"{classes}: lists none of the classes of these images ({some(dropped)})")
    notes.append(
        f"{len(source) - len(kept)} images of {len(dropped)} classes that {classes} doesn't list are left out ({some(dropped)})"
    )
    return source.take(kept)


def _complete(source: Source, words: Sequence[Word | None], labels: Path | None) -> tuple[Source, list[Word]]:
    """Without papers that have no class. Raises DataError when an image has none."""
    without = [index for index, word in enumerate(words) if word is None]
    known = [word for word in words if word is not None]
    if not without:
        return source, known
    missing = next((index for index in without if _is_picture(source.files[index])), without[0] if not known else None)
    if missing is not None:
        raise DataError(
            f"{source.shown(missing)}: no class{f' in {labels}' if labels else ''}, as {len(without) - 1} others have none, "
            f"but {len(known)} have one; give all of them one, or pack the two kinds apart"
        )
    source.notes.append(_left_out([source.shown(index) for index in without], "no image by its name, and without a class"))
    return source.take([index for index, word in enumerate(words) if word is not None]), known


def _of_one_kind(
    source: Source, words: list[Word], labels: Path | None, classes: Path | None, bare: bool
) -> list[Word]:
    """Numbers or names: ILSVRC's numbers become WNIDs where its meta.mat is at hand."""
    number = next((index for index, word in enumerate(words) if isinstance(word, int)), None)
    if number is None:
        return words
    name = next((index for index, word in enumerate(words) if not isinstance(word, int)), None)
    if name is not None:
        raise DataError(
            f"{source.shown(number)} has a number for a class ({words[number]}), {source.shown(name)} a name "
            f"({words[name]!r}); give all of them one kind, for instance by --labels"
        )
    beside = labels.with_name("meta.mat") if bare and labels is not None and not is_meta(classes) else None
    if beside is not None and beside.is_file():
        source.notes.append(f"{labels}: its numbers are those of {beside}")
    meta = classes if is_meta(classes) else beside if beside is not None and beside.is_file() else None
    return words if meta is None else by_meta([int(word) for word in words], read_meta(meta))


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
        # The same draw whatever number the class has, so that --classes leaves the parts as they are.
        held_out[rows[stream.permutation(0, len(rows))[: round(share * len(rows))]]] = True
    return np.flatnonzero(held_out if which == "val" else ~held_out).tolist()


def _stop(trouble: str) -> None:
    raise DataError(trouble + ", or add --on-error skip")


# One source


def _find(root: Path, any_depth: bool, among: bool, complain: Complain, ours: Sequence[Path]) -> _Found:
    """any_depth: folders are not classes, because something else says the classes. among: it is one of several.

    ours: files that are no images.
    """
    if root.is_dir():
        entries = _without(ours, list_folder(root, complain))
        return _files(entries, f"{root}/", root.resolve().name, any_depth, among)
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
        return _files(list(list_zip(root)), f"{root}: ", root.stem, any_depth, among)
    if is_tar(root):
        return _files(list(list_tar(str(root), complain)), f"{root}: ", root.stem, any_depth, among)
    program = unpacker(head)
    if program is not None:
        raise DataError(
            f"{root}: is compressed, so that its images can't be read one by one; unpack it once with '{program} {shlex.quote(str(root))}', "
            "then pack what comes out (images hardly get larger by it)"
        )
    raise DataError(f"{root}: is a file, but no tar, zip, .npz, .npy or dataset; expected these or a folder of images")


def _without(ours: Sequence[Path], entries: Iterable[Entry]) -> list[Entry]:
    """Without --labels and --classes, and without datasets: OUT may lie in the folder that it is made of."""
    own = {path.name: path for path in ours}

    def is_ours(name: str, place: Place) -> bool:
        if OWN.search(name):
            return True
        mine = own.get(name.rpartition("/")[2])
        return mine is not None and isinstance(place, Span) and Path(place.path).resolve() == mine.resolve()

    return [(name, place) for name, place in entries if not is_ours(name, place)]


def _rows(root: Path, rows: arrays.Rows) -> _Found:
    names = rows.class_names
    words: list[Word | None] | None = None
    if rows.labels is not None:
        words = [names[label] for label in rows.labels] if names else list(rows.labels)
    numbers = rows.labels if names else None
    return _Found(f"{root}: ", rows.files, rows.places, words, root.stem, names or None, numbers, rows.in_order)


def _order(name: str) -> bytes:
    """Sorts paths by the bytes of their parts, files before folders. One short object: a million are held at once."""
    folders, slash, last = os.fsencode(name).rpartition(b"/")
    return (b"\1" + folders.replace(b"/", b"\0\1") + b"\0" if slash else b"") + b"\0" + last


def _files(entries: list[Entry], prefix: str, stem: str, any_depth: bool, among: bool) -> _Found:
    folders = {name for name, _ in entries if name.endswith("/")}
    entries = [entry for entry in entries if not entry[0].endswith("/")]
    entries, folders, tops, alone = _descend(entries, folders)
    # One of several that has images of its own is a class, with files further down; alone, that would be a guess.
    alone = alone or (among and any("/" not in name and _is_picture(name) for name, _ in entries))
    prefix, stem = prefix + "".join(f"{top}/" for top in tops), tops[-1] if tops else stem
    entries.sort(key=lambda entry: _order(entry[0]))
    edm = next((place for name, place in entries if name == "dataset.json"), None)
    if edm is not None:
        entries = [entry for entry in entries if entry[0] != "dataset.json"]
        names = [name for name, _ in entries]
        words = edm_labels(edm, names, f"{prefix}dataset.json")
        return _Found(prefix, names, [place for _, place in entries], words or [stem] * len(names), stem)
    indices, beside, captioned = sidecar_labels(entries, prefix)
    entries = [entries[i] for i in indices]
    notes: list[str] = []
    if beside is None and not any_depth and not alone:
        entries = _without_loose(entries, prefix, notes)
    names = [name for name, _ in entries]
    classes = {name.partition("/")[0] for name in names if "/" in name}
    flat = alone or not classes
    classes |= {name.partition("/")[0] for name in folders}
    return _Found(
        prefix,
        names,
        [place for _, place in entries],
        beside,
        stem,
        None if flat or beside is not None else sorted(classes, key=os.fsencode),
        flat=flat,
        captioned=captioned and beside is None,
        notes=notes,
    )


def _descend(entries: list[Entry], folders: set[str]) -> tuple[list[Entry], set[str], list[str], bool]:
    """What holds only one folder is that folder: an archive made of one, or one class.

    (its entries, folders, the folders left on the way, whether the last is a class by itself).
    """
    tops: list[str] = []
    while entries:
        found = {name.partition("/")[0] if "/" in name else "" for name, _ in entries}
        found |= {name.partition("/")[0] for name in folders}
        if len(found) > 1 or "" in found:
            break
        top = found.pop()
        tops.append(top)
        entries = [(name[len(top) + 1 :], place) for name, place in entries]
        folders = {name[len(top) + 1 :] for name in folders} - {""}
        loose = [name for name, _ in entries if "/" not in name]
        if len(loose) == len(entries) or any(map(_is_picture, loose)):
            return entries, folders, tops, True
    return entries, folders, tops, False


def _is_picture(name: str) -> bool:
    """Whether a name is one for an image."""
    Image.init()
    kind = Image.EXTENSION.get(Path(name).suffix.lower())
    return kind in Image.OPEN and kind not in NO_PICTURES


def _without_loose(entries: list[Entry], prefix: str, notes: list[str]) -> list[Entry]:
    """Without papers that lie beside class folders. Raises DataError when there are images beside them."""
    loose = [name for name, _ in entries if "/" not in name]
    if not loose or len(loose) == len(entries):
        return entries
    pictures = [name for name in loose if _is_picture(name)]
    if pictures:
        folder = next(name for name, _ in entries if "/" in name).partition("/")[0]
        raise DataError(
            f"{prefix.rstrip(': /')}: holds both class folders ({folder}, …) and loose images ({some(pictures)}); "
            "move one kind away, or say by --labels which class each image has"
        )
    notes.append(_left_out([prefix + name for name in loose], "not in a class folder"))
    return [entry for entry in entries if "/" in entry[0]]


def _left_out(shown: list[str], why: str) -> str:
    return f"{shown[0]}{f' and {len(shown) - 1} more' if len(shown) > 1 else ''} left out: {why}"


def _several(part: _Found) -> None:
    """Among several sources, a flat one is a class folder (a class tar) or a shard: its name comes first."""
    if part.words is None and part.classes is None:
        part.classes = [part.stem]
        part.words = [part.stem] * len(part.names)
    if part.flat or not any("/" in name for name in part.names):
        part.prefix = part.prefix.removesuffix(f"{part.stem}/")
        part.names = [f"{part.stem}/{name}" for name in part.names]


def _words(part: _Found) -> Sequence[Word | None]:
    """The class of each image of a source."""
    if part.numbers is not None and part.classes and len(set(part.classes)) < len(part.classes):
        twice = next(name for name in part.classes if part.classes.count(name) > 1)
        raise DataError(f"{part.prefix}two of its classes are called {twice!r}; pack it alone, without --classes")
    if part.words is not None:
        return part.words
    if part.classes is None:
        return [part.stem] * len(part.names)
    return [name.partition("/")[0] for name in part.names]


def _unused(found: list[_Found], words: Sequence[Word]) -> set[str]:
    """Classes without images, where the sources know of some."""
    every = {name for part in found for name in part.classes or ()}
    return every if set(words) <= every else set()
