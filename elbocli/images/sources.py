"""Sources of `elbo prep`: the images of one or several sources in a fixed order, each with a class.

A source is a folder, a tar (of tars), a zip, an array file or another dataset. In every folder files come before folders,
both in the byte order of their names, so that a folder and any archive of it are the same source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.core.streams import Stream
from elbocli.errors import DataError, UsageError
from elbocli.images import layouts
from elbocli.images.image_refs import ImageRef
from elbocli.images.labels import assign, by_meta, is_meta, read_labels_file, read_meta, some
from elbocli.images.registry import Complain, Word, printable


@dataclass(frozen=True)
class Source:
    """Images in a fixed order. files: paths below their source; labels: an index into class_names for each.

    prefixes, owners: how a message names image i: prefixes[owners[i]] + files[i]. in_order: whether refs can only
    be read one after another. notes: what a person should know of how the classes were found.
    """

    files: list[str]
    labels: list[int]
    class_names: list[str]
    refs: Sequence[ImageRef]
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
        """Keep only those images, in that order. Raises UsageError when they can only be read in their own."""
        if self.in_order and any(b < a for a, b in pairwise(chosen)):
            name = self.prefixes[0].rstrip(":/ ")
            remedy = "pack it as it is, then the dataset in random order: elbo prep ALL.h5 OUT.h5 --shuffle-seed S"
            raise UsageError(f"{name}: can only be read in its own order; {remedy}")
        lists = {name: getattr(self, name) for name in ("files", "labels", "refs", "owners")}
        taken: dict[str, Any] = {name: [values[i] for i in chosen] for name, values in lists.items()}
        return replace(self, **taken)


def stop(trouble: str) -> None:
    """Raise DataError."""
    raise DataError(trouble + ", or add --on-error skip")


def open_source(
    roots: Sequence[Path] | Path, *, labels: Path | None = None, classes: Path | None = None, complain: Complain = stop
) -> Source:
    """Open one or several sources.

    labels, classes: files with the class of each image, and with all classes in order (see labels.py, classes.py).
    complain: gets the trouble of damaged archives, which is raised otherwise. Raises DataError, also when nothing is there.
    """
    roots = [roots] if isinstance(roots, Path) else list(roots)
    ours = [path for path in (labels, classes) if path is not None]
    found = [layouts.list_source(root, labels is not None, len(roots) > 1, complain, ours) for root in roots]
    if len(found) > 1:
        for part in found:
            layouts.name_among_others(part)
    names = [name for part in found for name in part.names]
    if not names:
        raise DataError(f"{roots[0]}: no files inside; expected images, or folders of images named by class")
    refs = found[0].refs if len(found) == 1 else [ref for part in found for ref in part.refs]
    prefixes = [part.prefix for part in found]
    owners = [owner for owner, part in enumerate(found) for _ in part.names]
    source = Source(names, [-1] * len(names), [], refs, prefixes, owners, any(part.in_order for part in found))
    source.notes.extend(note for part in found for note in part.notes)
    if labels is None and classes is None and len(found) == 1 and found[0].numbers is not None:
        return replace(source, labels=found[0].numbers, class_names=list(found[0].classes or ()))
    bare = False
    if labels is not None:
        words, bare = read_labels_file(labels, names)
    else:
        words = [word for part in found for word in layouts.words_of(part)]
    return _classified(*_complete(source, words, labels), found, labels, classes, bare)


def _classified(
    source: Source,
    words: list[Word],
    found: list[layouts.Listing],
    labels: Path | None,
    classes: Path | None,
    bare: bool,
) -> Source:
    """Number the classes, and leave out images whose class isn't listed."""
    notes = source.notes
    words = _of_one_kind(source, words, labels, classes, bare)
    own = found[0].classes if len(found) == 1 and labels is None else None
    every = {name for part in found for name in part.classes or ()}
    # Classes without images count, if the sources know all those of the images.
    unused = every if labels is None and set(words) <= every else set()
    numbers, class_names, dropped = assign(words, own, unused, classes, bare, notes)
    if labels is None and len(class_names) > 1 and any(part.captioned for part in found):
        notes.append("no class lies beside the images (.cls or .json), so their folders or archives are the classes")
    source = replace(source, labels=numbers, class_names=class_names)
    if not dropped:
        return source
    kept = [index for index, number in enumerate(numbers) if number >= 0]
    if not kept:
        raise DataError(f"{classes}: lists none of the classes of these images ({some(dropped)})")
    images = f"{len(source) - len(kept)} images of {len(dropped)} classes"
    notes.append(f"{images} that {classes} doesn't list are left out ({some(dropped)})")
    return source.take(kept)


def _complete(source: Source, words: Sequence[Word | None], labels: Path | None) -> tuple[Source, list[Word]]:
    """Leave out papers, which have no class. Raises DataError when an image has none."""
    without = [index for index, word in enumerate(words) if word is None]
    known = [word for word in words if word is not None]
    if not without:
        return source, known
    missing = next(
        (index for index in without if layouts.is_picture(source.files[index])), without[0] if not known else None
    )
    if missing is not None:
        numbers = f"as {len(without) - 1} others have none, but {len(known)} have one"
        what = f"no class{f' in {labels}' if labels else ''}, {numbers}"
        raise DataError(f"{source.shown(missing)}: {what}; give all of them one, or pack the two kinds apart")
    papers = [source.shown(index) for index in without]
    source.notes.append(layouts.left_out(papers, "no image by its name, and without a class"))
    return source.take([index for index, word in enumerate(words) if word is not None]), known


def _of_one_kind(
    source: Source, words: list[Word], labels: Path | None, classes: Path | None, bare: bool
) -> list[Word]:
    """Refuse numbers among names, and turn ILSVRC's numbers into WNIDs where its meta.mat is at hand."""
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
    group: int = 1,
) -> Source:
    """Choose images: a held-out share of each class or the rest, then shuffled, then the first, then a shard.

    subset: ('val', F) is a share F of each class, always the same one; ('train', F) is everything else.
    shard: (i, N), counting from 1: the i-th of N stretches, which begin at multiples of `group` images where there are
    enough, so that groups of images are the same in the shards as in the whole. Raises DataError when nothing is left.
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
        step = group if len(chosen) >= count * group else 1
        begin, end = ((k * len(chosen) // count) // step * step for k in (index - 1, index))
        chosen = chosen[begin : len(chosen) if index == count else end]
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
