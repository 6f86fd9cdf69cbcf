"""Classes of images in users' files: a class is a word (a folder's name) or a number.

`--labels FILE`: lines of NAME CLASS, CSV with or without a heading, or one class a line in the order of the names
(ILSVRC's ground-truth list), or an array of numbers (.npy). EDM's dataset.json; webdataset's files beside each image.
"""

from __future__ import annotations

import csv
import json
import operator
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import DataError
from elbocli.files.opening import check_file
from elbocli.files.reading import encodable, naming, refusing
from elbocli.images.image_refs import ImageRef, read_bytes
from elbocli.images.registry import Word

BOXES = re.compile(r"(\S+)(?:\s-?\d+){4}(\s|$)")
"""A class, and where in the image it is: Kaggle's PredictionString, Tiny ImageNet's annotations."""
SIDECARS = (".cls", ".json", ".txt")
JSON_KEYS = ("cls", "label", "class", "class_id", "class_name")


def lines_of(path: Path) -> list[str]:
    """Read a user's text file. Raises DataError when it isn't text, or empty."""
    with naming(path):
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
    with refusing(f"{path}: not a usable .npy", kind=DataError):
        check_file(path)
        labels = np.load(path, allow_pickle=False)
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {labels.dtype} {labels.shape} for {count} images; expected a whole number for each")
    return [int(label) for label in labels.reshape(-1)]


def _rows(path: Path, lines: list[str]) -> Iterator[tuple[str, str]]:
    """Split each line into name and class."""
    split = [line.split("\t" if "\t" in line else None, 1) for line in lines]
    if "," in lines[0]:
        with refusing(f"{path}: not usable as CSV", kind=DataError):
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
    with refusing(f"{where}: 'labels' is not a list of [name, number]", kind=DataError):
        table = {str(name): operator.index(label) for name, label in labels}
    return [table.get(name) for name in names]


def _json(ref: ImageRef, where: str) -> Any:
    with naming(where), refusing("not usable JSON", kind=DataError):
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
        with naming(f"{where}.cls"):
            return _word(bytes(sides[".cls"].read()[:1000]).decode("utf-8", "replace"))
    if ".json" in sides:
        content = _json(sides[".json"], f"{where}.json")
        for key in JSON_KEYS:
            if isinstance(content, dict) and isinstance(content.get(key), (int, str)):
                return _word(str(content[key]))
    return None


def utf8(name: str) -> str:
    """A file name as text, bytes that are not UTF-8 escaped; NUL too, which HDF5 can't hold."""
    return encodable(name).replace("\0", "\\0")
