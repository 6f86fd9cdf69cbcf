"""Which class an image belongs to, as users' files say it: a class is a word (a folder's name) or a number.

`--labels FILE`: lines of NAME CLASS, CSV with or without a heading, or one class a line in the order of the names
(ILSVRC's ground-truth list). `--classes FILE`: a class a line, KEY or KEY<tab>NAME or KEY NAME, or ILSVRC's meta.mat.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elbocli.errors import DataError
from elbocli.files.places import Place, read_bytes

Word = str | int
BOXES = re.compile(r"^(\S+)(?: -?\d+){4}")
SIDECARS = (".cls", ".json", ".txt")
JSON_KEYS = ("cls", "label", "class", "class_id", "class_name")


def _lines(path: Path) -> list[str]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: empty")
    return lines


def _word(text: str) -> Word:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 10 else text


def read_labels_file(path: Path, names: Sequence[str]) -> tuple[list[Word], bool]:
    """(a class for each of the images' names, whether they are a bare list in the names' order).

    A name in the file may be the whole path, the last part, or that without its suffix.
    Raises DataError when an image has none, or a list's length is not that of the images.
    """
    lines = _lines(path)
    if not any(separator in line.strip() for line in lines for separator in ",\t "):
        if len(lines) != len(names):
            raise DataError(f"{path}: {len(lines)} lines for {len(names)} images; expected one class for each")
        return [_word(line) for line in lines], True
    table: dict[str, Word] = {}
    for row in csv.reader(lines) if "," in lines[0] else (line.split(None, 1) for line in lines):
        if len(row) >= 2:
            boxes = BOXES.match(row[1])
            table[row[0].strip().removeprefix("./")] = _word(boxes[1] if boxes else row[1])
    words, missing = [], []
    for name in names:
        base = name.rpartition("/")[2]
        word = next((table[key] for key in (name, base, base.rpartition(".")[0]) if key in table), None)
        words.append("" if word is None else word)
        if word is None:
            missing.append(name)
    if missing:
        raise DataError(
            f"{path}: no class for {len(missing)} of {len(names)} images, the first {missing[0]}; "
            "expected lines of NAME CLASS, or of one class in the order of the names"
        )
    return words, False


@dataclass(frozen=True)
class Classes:
    """Classes in a fixed order. keys: what images call them; names: what people call them."""

    path: Path
    keys: list[str]
    names: list[str]


def read_classes_file(path: Path, words: set[str]) -> Classes:
    """words: what the images call their classes, so that a line that is one of them is a key as it stands.

    Raises DataError when a class stands there twice.
    """
    if path.suffix == ".mat":
        pairs = _meta_mat(path)
    else:
        pairs = []
        for line in _lines(path):
            tabbed, whole = line.partition("\t"), line.strip()
            key, name = (tabbed[0], tabbed[2]) if tabbed[1] else (whole, "")
            if not tabbed[1] and whole not in words:
                key, _, name = whole.partition(" ")
            pairs.append((key.strip(), name.strip() or key.strip()))
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twice is not None:
        raise DataError(f"{path}: class {twice!r} stands there twice; each line is one class")
    return Classes(path, keys, [name for _, name in pairs])


def _meta_mat(path: Path) -> list[tuple[str, str]]:
    """WNIDs and words of ILSVRC's 1000 classes, in the order of its ground-truth list."""
    from scipy.io import loadmat

    try:
        table = loadmat(path, squeeze_me=True)["synsets"]
        rows = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in table if not row["num_children"]]
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path}: not the devkit's meta.mat ({' '.join(str(error).split())[:100]})") from error
    return [(wnid, words) for _, wnid, words in sorted(rows)]


def edm_labels(place: Place, names: Sequence[str], where: str) -> list[Word] | None:
    """Classes from EDM's dataset.json; None when it says that there are none. Raises DataError."""
    content = _json(place, where)
    labels = content.get("labels") if isinstance(content, dict) else None
    if labels is None:
        return None
    try:
        table = {str(name): int(label) for name, label in labels}
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: 'labels' is not a list of [name, number]: {error}") from error
    missing = [name for name in names if name not in table]
    if missing:
        raise DataError(f"{where}: no label for {len(missing)} of {len(names)} images, the first {missing[0]}")
    return [table[name] for name in names]


def _json(place: Place, where: str) -> Any:
    try:
        content = place.read()
        return json.loads(bytes(content))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not usable JSON: {str(error)[:100]}") from error


def sample_key(name: str) -> tuple[str, str]:
    """(path up to the first dot of the last part, the rest): webdataset's key and suffix."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, dot + suffix


def sidecar_labels(entries: Sequence[tuple[str, Place]], where: str) -> tuple[list[int], list[Word] | None]:
    """(indices of the images among the entries, their classes or None) of webdataset-style samples.

    A sample's class is in KEY.cls (a number or a word) or in KEY.json (under cls, label, class, class_id or class_name).
    Raises DataError when some samples have a class and others none.
    """
    sides: dict[str, dict[str, Place]] = {}
    pictures = []
    for index, (name, place) in enumerate(entries):
        key, suffix = sample_key(name)
        if suffix in SIDECARS:
            sides.setdefault(key, {})[suffix] = place
        else:
            pictures.append((index, key))
    if not any(key in sides for _, key in pictures):
        return list(range(len(entries))), None
    words = [_sidecar_word(sides.get(key, {}), f"{where}{key}") for _, key in pictures]
    known = sum(word is not None for word in words)
    if not known:
        return [index for index, _ in pictures], None
    if known < len(words):
        name = entries[pictures[words.index(None)][0]][0]
        raise DataError(f"{where}{name}: no class beside it, but {known} others have one")
    return [index for index, _ in pictures], [word for word in words if word is not None]


def _sidecar_word(sides: dict[str, Place], where: str) -> Word | None:
    if ".cls" in sides:
        try:
            return _word(bytes(sides[".cls"].read()[:1000]).decode("utf-8", "replace"))
        except DataError as error:
            raise DataError(f"{where}.cls: {error}") from error
    if ".json" in sides:
        content = _json(sides[".json"], f"{where}.json")
        for key in JSON_KEYS:
            if isinstance(content, dict) and isinstance(content.get(key), (int, str)):
                return _word(str(content[key]))
    return None


def utf8(name: str) -> str:
    """A file name as text, bytes that are not UTF-8 shown as replacement characters; NUL too, which HDF5 can't hold."""
    return os.fsencode(name).decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
