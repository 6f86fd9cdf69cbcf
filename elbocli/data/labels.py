"""Read the classes of images from the user's files. A class is a word (such as a folder's name) or a number.

`--labels FILE`: lines of IMAGE CLASS; CSV; or one class a line, in the order of the image names.
No --labels: EDM's dataset.json, or webdataset's label files beside the images.
`--class-names FILE`: one class a line, as KEY, KEY<tab>NAME or, for numbers and WordNet IDs, KEY NAME; or ILSVRC's meta.mat.
KEY: class in the images' labels. NAME: class name for display.
"""

import csv
import json
import operator
import os
import re
from collections.abc import Sequence
from pathlib import Path

from elbocli.data.decode import is_picture
from elbocli.data.registry import Entries, ImageRef, Word
from elbocli.errors import DataError
from elbocli.files.reading import check_file, read_bytes, reading
from elbocli.runtime.progress import log

BOXES = re.compile(r"(\S+)(?:\s-?\d+){4}(\s|$)")  # class and box: Kaggle's PredictionString, Tiny ImageNet
NUMBERED = re.compile(r"([a-z]\d{8}|\d{1,9})\s")  # begins with a WordNet ID or a number
SIDECARS = (".cls", ".json", ".txt")


def lines_of(path: Path) -> list[str]:
    """Return the non-empty lines of a text file. Raises DataError, FormatError."""
    remedy = "; list the classes as text; labels of MNIST (IDX), beside its images, are read without --labels"
    with reading(f"{path}: not a text file", remedy, DataError):
        lines = [line for line in read_bytes(path).decode("utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty; list one class a line")
    return lines


def _word(text: str) -> Word:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 10 else text


def read_labels_file(path: Path, names: Sequence[str]) -> tuple[list[Word | None], bool]:
    """Read the file of --labels: a table of names and classes, or a bare list of classes.

    names: files of all images; the lines of a bare list are in this order.
    Returns: class of each image (None: missing or ambiguous), and whether the file is a bare list.
    Names in a table: paths, file names, or file names without suffix.
    Numbers in a bare list: class numbers of ILSVRC's meta.mat if that file is in the same folder.
    Raises DataError: when the list's length is not the number of images, a name fits several images, or no image gets a class.
    """
    lines = lines_of(path)
    if not any(separator in line.strip() for line in lines for separator in ",\t "):
        if len(lines) != len(names):
            raise DataError(
                f"{path}: {len(lines)} lines for {len(names)} images; expected one class per image, or lines of NAME CLASS"
            )
        numbers = [_word(line) for line in lines]
        meta = path.with_name("meta.mat")
        if isinstance(numbers[0], int) and meta.is_file():
            log.warning(f"{path}: the numbers in this file are read as class numbers of {meta}")
            wnids: dict[Word, Word] = dict(enumerate(read_meta(meta)[0], 1))
            with reading(f"{path}: not ILSVRC's numbers, 1 to {len(wnids)}", kind=DataError):
                numbers = [wnids[number] for number in numbers]
        return [*numbers], True
    rows = [line.split("\t" if "\t" in line else None, 1) for line in lines]
    if "," in lines[0]:
        with reading(f"{path}: not usable as CSV", kind=DataError):
            rows = list(csv.reader(lines))
    table: dict[str, Word | None] = {}
    paths = set(names)
    fits: dict[str, str] = {}  # a name without its folder, or without its suffix too → the image that has it
    for row in rows:
        if len(row) >= 2:
            key = row[0].strip().removeprefix("./")
            boxes = BOXES.match(row[1])
            word = _word(boxes[1] if boxes else row[1])
            # A path in the file may begin above or below SRC. But an image's whole path names no other image by its last part.
            for name in {key, Path(key).name}:
                entry = None if key in paths and name != key else word
                table[name] = entry if table.get(name, entry) == entry else None
    words: list[Word | None] = []
    for name in names:
        match = next((key for key in (name, Path(name).name, Path(name).stem) if table.get(key) is not None), name)
        if match != name and is_picture(name) and fits.setdefault(match, name) != name:
            raise DataError(f"{path}: {match} fits {fits[match]} and {name}; list images by their paths")
        words.append(table.get(match))
    if all(word is None for word in words):
        raise DataError(
            f"{path}: none of the {len(names)} images (the first is {names[0]}) has exactly one class in the file; expected "
            "lines of NAME CLASS (with a tab before CLASS if names have spaces), CSV, or one class a line in order of the names"
        )
    return words, False


def edm_labels(ref: ImageRef, names: Sequence[str]) -> list[Word | None] | None:
    """Return the classes in EDM's dataset.json; None for an image that is not listed.

    ref: the file. names: the images, named as in the file.
    Returns: None instead of a list if the file has no labels.
    Raises DataError: when the labels are not a list of [name, number].
    """
    with reading("dataset.json: expected 'labels', a list of [name, number]", kind=DataError):
        labels = json.loads(bytes(ref.read())).get("labels")
        if labels is None:
            return None
        table = {str(name): operator.index(label) for name, label in labels}
    return [table.get(name) for name in names]


def sidecar_labels(entries: Entries) -> tuple[Entries, list[Word | None] | None]:
    """Separate webdataset's images from the .cls, .json and .txt files beside them, and read the classes in KEY.cls.

    Returns: the images, and the class of each image (None: no class); None instead of a list if no image has a class.
    Raises DataError: when a label file can't be read.
    """
    keys = {_key(name) for name in entries if not name.endswith(SIDECARS)}
    beside = {name: ref for name, ref in entries.items() if name.endswith(SIDECARS) and _key(name) in keys}
    words: dict[str, Word] = {}
    for name, ref in beside.items():
        if name.endswith(".cls"):
            words[_key(name)] = _word(bytes(ref.read(1000)).decode("utf-8", "replace"))
    images = {name: ref for name, ref in entries.items() if name not in beside}
    return images, [words.get(_key(name)) for name in images] if words else None


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


# Numbers of classes


def read_classes_file(path: Path, words: set[str]) -> tuple[list[str], list[str]]:
    """Read the file of --class-names: the key (as in the images' labels) and name of each class.

    words: class names in the images' labels; empty if the labels are numbers.
    Raises DataError: when a class is listed twice.
    """
    if path.suffix == ".mat":
        return read_meta(path)
    keys = []
    names = []
    lines = [line.strip() for line in lines_of(path)]
    for line in lines:
        key, tab, name = line.partition("\t")
        if not tab and line not in words and NUMBERED.match(line):
            key, _, name = line.partition(" ")
        keys.append(key.strip())
        names.append(name.strip() or key.strip())
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}: class {max(keys, key=keys.count)!r} is listed twice; list each class once")
    return keys, names


def read_meta(path: Path) -> tuple[list[str], list[str]]:
    """Read WordNet IDs and names of ILSVRC's classes, in the order of class numbers. Raises DataError."""
    from scipy.io import loadmat

    with reading(f"{path}: not the devkit's meta.mat", kind=DataError):
        check_file(path)
        leaves = [row for row in loadmat(path, squeeze_me=True)["synsets"].reshape(-1) if row["num_children"] == 0]
        leaves.sort(key=lambda row: int(row["ILSVRC2012_ID"]))
        return [str(row["WNID"]) for row in leaves], [str(row["words"]) for row in leaves]


def assign(words: Sequence[Word], known: list[str], listed: Path | None, bare: bool) -> tuple[list[int], list[str]]:
    """Number the classes from 0. Returns each image's class number (−1: not listed), and the class names.

    words: class of each image. Numbers count from 1 with ILSVRC's meta.mat, and in a bare list without 0; else from 0.
    known: class names of the user's archives or datasets; all are returned if they contain every word.
    listed: file of --class-names.
    bare: whether the file of --labels has one class a line without image names.
    Raises DataError: when a number has no class, or words and numbers are mixed.
    """
    numbers = [word for word in words if isinstance(word, int)]
    texts = {word for word in words if isinstance(word, str)}
    if numbers and texts:
        both = f"{numbers[0]} and {min(texts)!r}"
        raise DataError(f"images' classes must be all numbers or all names, found {both}; change the labels, or add --labels")
    keys = names = known if texts <= set(known) else sorted(texts, key=os.fsencode)
    if listed is not None:
        keys, names = read_classes_file(listed, texts)
    if texts or (listed is not None and all(map(str.isdecimal, keys))):
        index = {int(key) if numbers else key: number for number, key in enumerate(keys)}
        return [index.get(word, -1) for word in words], names
    least = min(numbers)
    largest = max(numbers)
    first = int(least > 0 if bare else listed is not None and listed.suffix == ".mat")
    if listed is None:
        names = [str(number) for number in range(first, min(largest, 10 * len(numbers) + 1000) + 1)]
    last = first + len(names) - 1
    if not first <= least <= largest <= last:
        raise DataError(
            f"images have classes {least} to {largest}, expected {first} to {last}; correct the labels or --class-names"
        )
    if first:
        log.warning(f"no image has class 0, so classes are numbered from 1: {names[0]} to {names[largest - 1]}")
    return [number - first for number in numbers], names


def some(words: Sequence[Word]) -> str:
    """List the first three words for a message."""
    return ", ".join(map(str, words[:3])) + (", …" if len(words) > 3 else "")


def utf8(name: str) -> str:
    """Return a file name as UTF-8, with invalid bytes and NUL escaped."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")  # HDF5 can't store NUL
