"""The classes of a dataset and their order: sorted, as in a source, or as in `--classes FILE`.

The file is text, a class a line, KEY or KEY<tab>NAME or KEY NAME, or the meta.mat of ILSVRC's devkit. An image's own
word for its class (a folder's name, a label) is the key; the name is for people.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elbocli.errors import DataError
from elbocli.files.opening import check_file
from elbocli.files.reading import refusing
from elbocli.images.labels import lines_of
from elbocli.images.registry import Word

NUMBERED = re.compile(r"([a-z]\d{8}|\d{1,9})\s+(\S.*)")
"""A line that begins with a WordNet ID or a number."""


@dataclass(frozen=True)
class Classes:
    """Classes in a fixed order. keys: what images call them; names: what people call them."""

    path: Path
    keys: list[str]
    names: list[str]


def read_classes_file(path: Path, words: set[str] | None) -> Classes:
    """Read --classes. words: the images' words for their classes; None when they have numbers.

    A line is a key as it stands where it is such a word, or where no word is the beginning of a line. For numbers it
    is a name, after its number or WordNet ID if it begins with one. Raises DataError when a class stands there twice.
    """
    if is_meta(path):
        return read_meta(path)
    lines = [line for line in lines_of(path) if line.strip()]
    spaced = [line.strip() for line in lines if "\t" not in line]
    pairs = words is not None and any(line.split(None, 1)[0] in words for line in spaced if line not in words)
    found = []
    for line in lines:
        whole = line.strip()
        numbered = NUMBERED.fullmatch(whole) if words is None else None
        if "\t" in line.rstrip():
            key, _, name = line.partition("\t")
        elif numbered:
            key, name = numbered.groups()
        elif pairs and whole not in (words or ()):
            key, _, name = whole.partition(" ")
        else:
            key, name = whole, ""
        found.append((key.strip(), name.strip() or key.strip()))
    keys = [key for key, _ in found]
    twice = next((key for key, count in Counter(keys).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: class {twice!r} is listed twice; list each class once")
    return Classes(path, keys, [name for _, name in found])


def is_meta(path: Path | None) -> bool:
    """Whether a file is to be read as ILSVRC's meta.mat."""
    return path is not None and path.suffix == ".mat"


def read_meta(path: Path) -> Classes:
    """Read WNIDs and words of ILSVRC's 1000 classes, in the order of its ground-truth list: number k is the k-th, from 1.

    Raises DataError when it isn't the devkit's meta.mat.
    """
    from scipy.io import loadmat

    with refusing(f"{path}: not the devkit's meta.mat", kind=DataError):
        check_file(path)
        leaves = [row for row in loadmat(path, squeeze_me=True)["synsets"].reshape(-1) if row["num_children"] == 0]
        rows = sorted((int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in leaves)
    if not rows or [number for number, _, _ in rows] != list(range(1, len(rows) + 1)):
        raise DataError(f"{path}: not the devkit's meta.mat (its classes are not numbered from 1)")
    return Classes(path, [wnid for _, wnid, _ in rows], [words for _, _, words in rows])


def by_meta(numbers: Sequence[int], meta: Classes) -> list[Word]:
    """Look up the WNIDs of ILSVRC's numbers. Raises DataError for a number that isn't one of them."""
    wrong = next((number for number in numbers if not 1 <= number <= len(meta.keys)), None)
    if wrong is not None:
        raise DataError(
            f"{meta.path}: an image has class {wrong}, but ILSVRC's numbers go from 1 to {len(meta.keys)}; numbers from 0 "
            "(Caffe's val.txt, EDM) count the sorted names: list these as text in --classes, or leave it out"
        )
    return [meta.keys[number - 1] for number in numbers]


def assign(
    words: Sequence[Word], own: list[str] | None, unused: set[str], listed: Path | None, bare: bool, notes: list[str]
) -> tuple[list[int], list[str], list[Word]]:
    """Number the classes. Returns (each image's number, −1 where its class isn't listed; names; classes not listed).

    words: each image's word for its class, or its number. own: all of them, in the order of the source, if it has one.
    unused: further classes. listed: --classes. bare: the words are a list of numbers without names.
    Raises DataError for a number without a class.
    """
    if words and isinstance(words[0], int):
        return _numbered([int(word) for word in words], listed, bare, notes)
    texts = [str(word) for word in words]
    if listed is None:
        keys = names = own if own and set(texts) <= set(own) else sorted({*texts, *unused}, key=os.fsencode)
    else:
        classes = read_classes_file(listed, set(texts))
        keys, names = classes.keys, classes.names
        _note_empty(classes, set(texts), notes)
    index = {key: number for number, key in enumerate(keys)}
    dropped: list[Word] = sorted({text for text in texts if text not in index})
    return [index.get(text, -1) for text in texts], list(names), dropped


def _note_empty(classes: Classes, used: set[str], notes: list[str]) -> None:
    empty = [key for key in classes.keys if key not in used]
    if empty and len(empty) < len(classes.keys):
        share = f"{len(empty)} of its {len(classes.keys)} classes"
        notes.append(f"{classes.path}: {share} have no images here ({some(empty)})")


def _numbered(
    numbers: list[int], listed: Path | None, bare: bool, notes: list[str]
) -> tuple[list[int], list[str], list[Word]]:
    """Number classes that are numbers. They count from 0; a bare list without a 0 counts from 1, as ILSVRC's does."""
    largest = max(numbers)
    if min(numbers) < 0:
        raise DataError(f"an image has class {min(numbers)}, which can't be: classes count from 0")
    if listed is not None:
        classes = read_classes_file(listed, None)
        if all(key.isdecimal() for key in classes.keys):
            index = {int(key): line for line, key in enumerate(classes.keys)}
            used = set(numbers)
            _note_empty(classes, {key for key in classes.keys if int(key) in used}, notes)
            dropped: list[Word] = sorted(used - set(index))
            return [index.get(number, -1) for number in numbers], classes.names, dropped
    first = int(bare and min(numbers) > 0)
    if listed is not None:
        names = classes.names
        if largest - first >= len(names):
            raise DataError(f"{listed}: {len(names)} classes, but an image has class {largest}")
    elif largest >= max(1000, 10 * len(numbers)) + first:
        raise DataError(f"an image has class {largest}, which can't be for {len(numbers)} images; check the labels")
    else:
        names = [str(number) for number in range(first, largest + 1)]
    if first:
        notes.append(f"no class is 0: they are taken to count from 1, {names[0]} to {names[largest - 1]}")
    return [number - first for number in numbers], names, []


def some(words: Sequence[Word]) -> str:
    """Name the first few, for a message."""
    return ", ".join(map(str, words[:3])) + (", …" if len(words) > 3 else "")
