"""Classes of images in users' files, where a class is a word (a folder's name) or a number, and the classes' own order.

`--labels FILE`: lines of NAME CLASS, CSV with or without a heading, or one class a line in the order of the names
(ILSVRC's ground-truth list), or an array of numbers (.npy). EDM's dataset.json; webdataset's files beside each image.
`--classes FILE`: a class a line, KEY or KEY<tab>NAME or KEY NAME, or the meta.mat of ILSVRC's devkit. An image's own
word for its class is the key; the name is for people.
"""

from __future__ import annotations

import csv
import json
import operator
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import DataError
from elbocli.files.reading import check_file, reading
from elbocli.images.image_refs import ImageRef, read_bytes
from elbocli.images.registry import Word

BOXES = re.compile(r"(\S+)(?:\s-?\d+){4}(\s|$)")
"""A class, and where in the image it is: Kaggle's PredictionString, Tiny ImageNet's annotations."""
NUMBERED = re.compile(r"([a-z]\d{8}|\d{1,9})\s+(\S.*)")
"""A line that begins with a WordNet ID or a number."""
SIDECARS = (".cls", ".json", ".txt")
JSON_KEYS = ("cls", "label", "class", "class_id", "class_name")


def lines_of(path: Path) -> list[str]:
    """Read a user's text file. Raises DataError when it isn't text, or empty."""
    with reading(path, kind=DataError):
        content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: empty")
    return lines


def _word(text: str) -> Word:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 10 else text


def read_labels_file(path: Path, names: Sequence[str]) -> tuple[list[Word | None], bool]:
    """Read --labels. Returns (a class for each of the names, None where it has none; whether it is a bare list).

    A name in the file may be the whole path, the last part, or that without its suffix. An array of numbers (.npy) has
    one for each image, counted from 0.
    Raises DataError when a list's length is not that of the images, a name has two classes, or no name is there.
    """
    if path.suffix == ".npy":
        return _label_array(path, len(names)), False
    lines = lines_of(path)
    if not any(separator in line.strip() for line in lines for separator in ",\t "):
        if len(lines) != len(names):
            expected = "expected one class for each, or lines of NAME CLASS"
            raise DataError(f"{path}: {len(lines)} lines for {len(names)} images; {expected}")
        return [_word(line) for line in lines], True
    table: dict[str, Word] = {}
    bases: dict[str, set[Word]] = {}
    for key, text in _rows(path, lines):
        boxes = BOXES.match(text)
        word = _word(boxes[1] if boxes else text)
        if table.setdefault(key, word) != word:
            raise DataError(f"{path}: {key} has two classes, {table[key]} and {word}; give one line for each image")
        bases.setdefault(key.rpartition("/")[2], set()).add(word)
    # A longer path in the file than in the archive: enough, where the last part says which image is meant.
    alone = {base: next(iter(words)) for base, words in bases.items() if len(words) == 1}
    words = []
    for name in names:
        base = name.rpartition("/")[2]
        stem = base.rpartition(".")[0]
        word_of = (table.get(name), table.get(base), table.get(stem) if stem else None, alone.get(base))
        words.append(next((word for word in word_of if word is not None), None))
    if all(word is None for word in words):
        raise DataError(
            f"{path}: none of the {len(names)} images stands there, the first is {names[0]}; expected lines of NAME CLASS "
            "(with a tab between them if names have spaces), CSV, or one class a line in the order of the names"
        )
    return words, False


def _label_array(path: Path, count: int) -> list[Word | None]:
    with reading(f"{path}: not a usable .npy", kind=DataError):
        check_file(path)
        labels = np.load(path, allow_pickle=False)
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {labels.dtype} {labels.shape} for {count} images; expected a whole number for each")
    return [int(label) for label in labels.reshape(-1)]


def _rows(path: Path, lines: list[str]) -> Iterator[tuple[str, str]]:
    """Split each line into name and class."""
    split = [line.split("\t" if "\t" in line else None, 1) for line in lines]
    if "," in lines[0]:
        with reading(f"{path}: not usable as CSV", kind=DataError):
            split = list(csv.reader(lines))
    for row in split:
        if len(row) >= 2:
            yield row[0].strip().removeprefix("./"), row[1]


def edm_labels(ref: ImageRef, names: Sequence[str], where: str) -> list[Word | None] | None:
    """Read classes from EDM's dataset.json, None where an image has none; None when it says that there are none at all.

    Raises DataError.
    """
    content = _json(ref, where)
    labels = content.get("labels") if isinstance(content, dict) else None
    if labels is None:
        return None
    with reading(f"{where}: 'labels' is not a list of [name, number]", kind=DataError):
        table = {str(name): operator.index(label) for name, label in labels}
    return [table.get(name) for name in names]


def _json(ref: ImageRef, where: str) -> Any:
    with reading(where, kind=DataError), reading("not usable JSON", kind=DataError):
        return json.loads(bytes(ref.read()))


def sample_key(name: str) -> tuple[str, str]:
    """Split a path into webdataset's key and suffix, at the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, dot + suffix


def sidecar_labels(
    entries: Sequence[tuple[str, ImageRef]], where: str
) -> tuple[list[int], list[Word | None] | None, bool]:
    """Sort webdataset's samples. Returns (indices of the images, their classes, whether files lie beside them).

    A sample's class is in KEY.cls (a number or a word) or in KEY.json (under cls, label, class, class_id or class_name);
    None for an image without, and instead of the list when no image has one. Raises DataError.
    """
    sides: dict[str, dict[str, ImageRef]] = {}
    pictures = []
    for index, (name, ref) in enumerate(entries):
        key, suffix = sample_key(name)
        if suffix in SIDECARS:
            sides.setdefault(key, {})[suffix] = ref
        else:
            pictures.append((index, key))
    if not any(key in sides for _, key in pictures):
        return list(range(len(entries))), None, False
    words = [_sidecar_word(sides.get(key, {}), f"{where}{key}") for _, key in pictures]
    indices = [index for index, _ in pictures]
    return indices, None if all(word is None for word in words) else words, True


def _sidecar_word(sides: dict[str, ImageRef], where: str) -> Word | None:
    if ".cls" in sides:
        with reading(f"{where}.cls", kind=DataError):
            return _word(bytes(sides[".cls"].read()[:1000]).decode("utf-8", "replace"))
    if ".json" in sides:
        content = _json(sides[".json"], f"{where}.json")
        for key in JSON_KEYS:
            if isinstance(content, dict) and isinstance(content.get(key), (int, str)):
                return _word(str(content[key]))
    return None


# Their numbers


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

    with reading(f"{path}: not the devkit's meta.mat", kind=DataError):
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
        raise DataError(
            f"an image has class {largest}, which can't be for {len(numbers)} images; check the labels, or list all classes in --classes"
        )
    else:
        names = [str(number) for number in range(first, largest + 1)]
    if first:
        notes.append(f"no class is 0: they are taken to count from 1, {names[0]} to {names[largest - 1]}")
    return [number - first for number in numbers], names, []


def some(words: Sequence[Word]) -> str:
    """Name the first few, for a message."""
    return ", ".join(map(str, words[:3])) + (", …" if len(words) > 3 else "")


def utf8(name: str) -> str:
    """A file name as text, bytes that are not UTF-8 escaped; NUL too, which HDF5 can't hold."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
