"""List the images in folders, archives and files for `elbo prep`, and find each image's class."""

import contextlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import elbocli.data.kinds  # noqa: F401 importing declares them
from elbocli.core.streams import Stream
from elbocli.data.decode import is_picture
from elbocli.data.kinds.trees import LISTERS
from elbocli.data.labels import assign, edm_labels, read_labels_file, sidecar_labels, some
from elbocli.data.registry import SOURCES, Entries, Images, Member, SourceFile, Span, Word
from elbocli.errors import DataError, ElboError
from elbocli.files.reading import reading
from elbocli.files.recognise import HEAD, kind_of, recognise
from elbocli.runtime.progress import log

OWN = re.compile(r"\.(h5|h5\.lock|h5\.partial(\.\w+)?|skipped\.jsonl)$")
PUBLISHED = ("an IDX file", "a CIFAR batch", "a parquet file")  # kinds of the files of published data sets
# Word in a name for training images (group 1), test images (group 2) or validation images (group 3), as in t10k-images, train2017.
SPLIT = re.compile(r"(?<![a-z])(?:(train|training|batch)|(test|t10k|testing)|(val|valid|validation|dev))(?![a-z])")


def open_source(roots: Sequence[Path], *, labels: Path | None = None, class_names: Path | None = None) -> Images:
    """List the images of folders, archives and files, with class numbers as labels.

    labels, class_names: files of --labels and --class-names.
    Raises DataError: damaged archive, no images, or an image without a class.
    """
    label_files = [path.name for path in (labels, class_names) if path is not None]
    parts = []
    for root in roots:
        with reading(root, kind=DataError):
            parts.append(list_source(root, len(roots) > 1, label_files))
    if len(parts) == 1 and parts[0].numbered and labels is class_names is None:
        return parts[0]
    if labels is class_names is None:
        _refuse_splits(roots[0], parts)
    class_folders = sorted({name for part in parts for name in part.class_names}, key=os.fsencode)
    whole = Images([], [], [], class_folders, parts[0].prefix if len(parts) == 1 else "")
    bare = False
    for part in parts:
        whole.files += part.files
        whole.labels += _words_of(part)
        whole.refs += part.refs
    if not whole.files:
        raise DataError(f"{roots[0]}: no files inside; expected images, or a folder of images for each class")
    if labels is not None:
        whole.labels, bare = read_labels_file(labels, whole.files)
        whole.class_names = []
    classed = [index for index, word in enumerate(whole.labels) if word is not None]
    unclassed = [name for name, word in zip(whole.files, whole.labels) if word is None]
    for name in unclassed:
        if is_picture(name) or not classed:
            both = f"{whole.prefix}{name}: no class (images with a class: {len(classed)})"
            raise DataError(f"{both}; remove images without a class, or give a class for each image with --labels")
    if unclassed:
        log.warning(
            f"{len(unclassed)} files with neither a class nor an image suffix are left out, such as {whole.prefix}{unclassed[0]}"
        )
    whole = whole.take(classed)
    words = whole.labels
    whole.labels, whole.class_names = assign(words, whole.class_names, class_names, bare)
    kept = [index for index, number in enumerate(whole.labels) if number >= 0]
    dropped = some(sorted({word for word, number in zip(words, whole.labels) if number < 0}))
    if not kept:
        raise DataError(f"{class_names}: lists none of the images' classes ({dropped}); correct the file")
    if dropped:
        log.warning(f"{len(words) - len(kept)} images of classes that {class_names} doesn't list are left out ({dropped})")
    return whole.take(kept)


def _refuse_splits(root: Path, parts: Sequence[Images]) -> None:
    """Raise DataError if class folders are training and test images, which would be packed together.

    These are names that differ only in the word for the split, such as train and test, or train2017 and val2017. Without a word
    for training images, they are splits only if all classes are: val and test may be classes among others.
    """
    names = sorted({name for part in parts if not part.numbered for name in part.class_names})
    groups: dict[str, dict[int | None, str]] = {}  # the rest of the name → kind of split → name
    for name in names:
        if match := SPLIT.search(name.lower()):
            groups.setdefault(name.lower().replace(match[0], "", 1), {})[match.lastindex] = name
    for splits in groups.values():
        if len(splits) > 1 and (1 in splits or len(splits) == len(names)):
            first, *others = [splits[kind] for kind in sorted(splits, key=str)]
            folder = shlex.quote(str(root / first)) if root.is_dir() else f"FOLDER/{first}"
            raise DataError(
                f"{root}: {' and '.join([first, *others])} are splits of a data set, not classes; unpack an archive, and pack each "
                f"split alone: 'elbo prep {folder} OUT.h5'; if these are classes, name them by --class-names FILE"
            )


def _words_of(images: Images) -> list[Word | None]:
    """Return each image's class, a name or number; None: no class. Raises DataError: two classes have the same name."""
    names = images.class_names
    if not images.numbered:
        return list(images.labels)
    if len(set(names)) < len(names):
        raise DataError(
            f"{images.prefix}2 classes named {max(names, key=names.count)!r}; pack SRC alone, no --labels/--class-names"
        )
    return [names[number] for number in images.labels]


# One source


def list_source(root: Path, among: bool, label_files: Sequence[str]) -> Images:
    """List the images of one folder, archive or file.

    among: whether there are several sources; if so, images outside class folders are listed as SOURCE/FILE.
    label_files: names of the files of --labels and --class-names, which are left out.
    Raises DataError or FormatError.
    """
    kind = recognise(root)
    if not holds_images(kind):
        raise DataError(
            f"{root}: is {kind}, no source of images; give a folder, zip, tar, .npy, .npz, dataset, or files of MNIST, CIFAR or parquet; "
            "unpack a compressed file first, and name a plug-in for other kinds"
        )
    stem = root.resolve().name if root.is_dir() else root.stem
    if kind in LISTERS:
        # OUT and the files of --labels and --class-names may be in the folder of the images.
        listed = LISTERS[kind](root)
        entries = {name: ref for name, ref in listed if not OWN.search(name) and name.rpartition("/")[2] not in label_files}
        images, stem = _sort_files(entries, stem, among)
    else:
        images = _open_file(kind, root)
    flat = all(label is None for label in images.labels or ())
    if flat:
        images.labels = [stem] * len(images)
        images.class_names = [stem]
    images.prefix = (f"{root}/" if root.is_dir() else f"{root}: ") + images.prefix
    if among and (flat or not any("/" in name for name in images.files)):
        images.files = [f"{stem}/{name}" for name in images.files]
    return images


def holds_images(kind: str) -> bool:
    """Return whether files or folders of this kind hold images."""
    return kind in LISTERS or kind in SOURCES


def _open_file(kind: str, *files: SourceFile) -> Images:
    images = SOURCES[kind](*files)
    if isinstance(images, Images):
        return images
    rows = list(images)
    return Images([name for name, _, _ in rows], [word for _, word, _ in rows], [ref for _, _, ref in rows])


def _order(name: str) -> bytes:
    # Files of a folder come before subfolders, both in the byte order of their names.
    # The key is one short object, because a million keys are in memory at once.
    folders, slash, last = os.fsencode(name).rpartition(b"/")
    return (b"\1" + folders.replace(b"/", b"\0\1") + b"\0" if slash else b"") + b"\0" + last


def _sort_files(entries: Entries, stem: str, among: bool) -> tuple[Images, str]:
    """Return the images of a folder or archive, and the class for all images if the files give no classes.

    entries: path → reference to the file; paths of folders end with a slash. stem: name of the source. among: as in `list_source`.
    """
    # A single folder at the top, as many archives have, is skipped.
    names = sorted(entries)
    ends = [name for name, after in zip(names, [*names[1:], ""]) if not name.endswith("/") or not after.startswith(name)]
    top = os.path.commonpath([name.rpartition("/")[0] for name in ends] or [""])
    stem = top.rpartition("/")[2] or stem
    top = f"{top}/" if top else ""
    entries = {name.removeprefix(top): ref for name, ref in entries.items() if name.startswith(top) and name != top}
    folders = {name.partition("/")[0] for name in entries if name.endswith("/")}
    entries = {name: entries[name] for name in sorted(entries, key=_order) if not name.endswith("/")}
    # The skipped folder, or one of several sources, is a single class if images lie directly in it.
    loose = any("/" not in name and is_picture(name) for name in entries)
    alone = (loose and (among or top)) or not any("/" in name for name in entries)
    if not any(map(is_picture, entries)):
        images = _published_set(entries)
        if images is not None:
            return images, stem
    class_folders: list[str] = []
    if "dataset.json" in entries:
        edm = entries.pop("dataset.json")
        words = edm_labels(edm, list(entries))
    else:
        entries, words = sidecar_labels(entries)
        classes = {name.partition("/")[0] for name in entries if "/" in name}
        if words is None and not alone:
            class_folders = sorted(classes | folders, key=os.fsencode)
            words = [name.partition("/")[0] if "/" in name else None for name in entries]
    return Images(list(entries), words, list(entries.values()), class_folders, top), stem


def _published_set(entries: Entries) -> Images | None:
    """Open the training images of MNIST, CIFAR or parquet files; None: no such files.

    Raises DataError: several data sets, or damaged files.
    """
    # If no file name says "train", all files are used.
    sets: dict[tuple[str, int | None, str], list[str]] = {}  # files by kind, split and folder
    for name, ref in entries.items():
        with contextlib.suppress(ElboError):
            kind = kind_of(Path(name), bytes(ref.read(HEAD)))
            if kind in PUBLISHED:
                split = SPLIT.search(name.lower())
                folder = name[: name.rfind("/") + 1]
                sets.setdefault((kind, split and split.lastindex, folder), []).append(name)
    chosen = [key for key in sets if key[1] == 1] or list(sets)
    if not chosen:
        return None
    kind = chosen[0][0]
    taken = [name for key in chosen for name in sets[key]]
    if len(chosen) > 1 or (kind == "an IDX file" and len(taken) > 1):
        raise DataError(f"holds several data sets ({some(taken)}); name the file of the data set to pack")
    others = [name for key in sets if key not in chosen for name in sets[key]]
    if others:
        log.warning(f"{taken[0]}: the training images are taken; left out: {some(others)}")
    return _open_file(kind, *(_file_of(entries, name) for name in taken))


def _file_of(entries: Entries, name: str) -> SourceFile:
    ref = entries[name]
    return Path(ref.path) if isinstance(ref, Span) and ref.size < 0 else Member(entries, name)


def choose(source: Images, *, subset: tuple[str, float] | None = None, limit: int | None = None) -> Images:
    """Choose images: first a subset, then the first `limit`.

    subset: ('val', F): the fraction F of each class, always the same images; ('train', F): all other images.
    Raises DataError: no images are left.
    """
    chosen = np.arange(len(source))
    if subset is not None:
        labels = np.asarray(source.labels)
        held_out = np.zeros(len(source), bool)
        stream = Stream(0, "prep-subset")
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            # The draw doesn't depend on the class's number, so that --class-names doesn't change which images are held out.
            held_out[rows[stream.permutation(0, len(rows))[: round(subset[1] * len(rows))]]] = True
        chosen = np.flatnonzero(held_out == (subset[0] == "val"))
    chosen = chosen[:limit]
    if not len(chosen):
        raise DataError(f"no images are left of {len(source)}; change --subset or --limit")
    return source.take(chosen.tolist())
