"""Choose the classes of images to draw: the words and files of `--classes`, and the class frequencies of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from elbocli.core.registry import nearest
from elbocli.core.streams import random_classes, random_classes_of
from elbocli.data.labels import lines_of
from elbocli.errors import DataError, ElboError, FormatError, Parameter, UsageError
from elbocli.runtime.progress import log

DATA = "data"
BALANCED = "balanced"
RANDOM = "random"
UNKNOWN = "the run doesn't record the class frequencies of its training data, and the dataset isn't there"
MOST_IMAGES = 10**15
CHANCE = 1e-3  # below this p-value, class frequencies differ by more than chance


def counts_for(num_classes: int, counts: list[int] | None, where: object) -> np.ndarray | None:
    """Return the number of training images of each of a network's classes, int64 [num_classes]; None: no classes, or unknown.

    counts: `class_counts` of the run's dataset, which may have fewer classes than the network. where: file, for messages.
    Raises FormatError for unusable counts.
    """
    if not num_classes or counts is None:
        return None
    if len(counts) > num_classes or not 0 < sum(counts) <= MOST_IMAGES:
        raise FormatError(
            f"{where}: class_counts are {len(counts)} numbers with the sum {sum(counts)}, expected at most {num_classes}, and a "
            f"sum from 1 to {MOST_IMAGES}; delete this entry"
        )
    return np.array(counts + [0] * (num_classes - len(counts)))


def usual_classes(counts: np.ndarray | None, where: object, effect: str) -> str:
    """Return DATA if class frequencies differ from equal ones by more than chance, and log them; else BALANCED.

    counts: number of training images of each class, [K]; None: unknown.
    where: the run or dataset. effect: clause for the message.
    """
    if counts is None or p_of_uniform(counts) >= CHANCE:
        return BALANCED
    log.info(f"{where}: the {len(counts)} classes of the training data have {counts.min()} to {counts.max()} images; {effect}")
    return DATA


def choose_labels(
    classes: str, n: int, num_classes: int, seed: int, names: Sequence[str] = (), counts: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the class of each of n images; None if there are no classes.

    classes: `balanced` (i mod num_classes); `random`; `data` (random, by the frequencies of the training data); comma-separated
    numbers or names, or a text file with one a line, repeated to length n.
    names: of the classes. counts: number of training images of each class, [num_classes]; None: unknown.
    Label i never depends on n: `data` draws the class of each image independently of the others.
    Raises UsageError for an unknown class, a word that matches two classes, or `data` without counts.
    Raises DataError for a file that is unreadable or empty, or names an unknown class.
    """
    if num_classes < 1:
        if classes not in (BALANCED, RANDOM):
            raise UsageError(
                Parameter("classes"), f" {classes:.60}: the run is unconditional; leave ", Parameter("classes"), " out"
            )
        return None
    if classes == BALANCED:
        return np.arange(n) % num_classes
    if classes == RANDOM:
        return random_classes(n, num_classes, seed)
    if classes == DATA:
        if counts is None:
            raise UsageError(
                Parameter("classes"), f" data: {UNKNOWN}; put the dataset back, or give ", Parameter("classes"), " balanced"
            )
        return random_classes_of(counts, n, seed)
    name_of = dict(enumerate(names))

    @cache
    def find(word: str) -> list[int]:
        # The class may be a number or a name.
        digits = (word.lstrip("0") or "0") if word.isdecimal() else ""
        return [number for number in range(num_classes) if name_of.get(number) == word or str(number) == digits]

    words = classes.split(",")
    where = "--classes"
    kind: type[ElboError] = UsageError
    if _is_file(classes) and not find(classes):
        words = [*lines_of(Path(classes))]
        where = classes
        kind = DataError
    numbers = list[int]()
    for word in map(str.strip, words):
        matches = find(word)
        if len(matches) != 1:
            hint = " or ".join(f"write 0{number}" for number in matches)
            hint = hint or nearest(word, names or [f"0 to {num_classes - 1}"])
            file = " and is no file" if words == [classes] else ""
            raise kind(f"{where}: {word!r:.60} matches {len(matches)} of {num_classes} classes{file}; {hint}")
        numbers += matches
    return np.resize(numbers, n)


def _is_file(text: str) -> bool:
    with suppress(OSError):  # a long list is no possible file name
        return Path(text).is_file()
    return False


LEAST_EXPECTED = 5  # images expected in each cell of a chi-square test of two samples; Cochran 1954


def p_of_uniform(counts: np.ndarray) -> float:
    """Return the p-value of Pearson's chi-square test that classes are equally frequent. counts: images of each class, [K]."""
    return _p_of_counts(counts[None], np.full((1, len(counts)), counts.mean()))


def p_of_equal_shares(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value of Pearson's chi-square test that two independent samples have equal proportions of classes.

    first, second: number of images of each class, [K]. Rare classes are pooled, so that LEAST_EXPECTED images are expected in
    each cell: else one image of a rare class could make any p-value.
    """
    table = np.stack([first, second])
    table = table[:, np.argsort(table.sum(0), kind="stable")]
    expected = table.sum(0) * (table.sum(1).min() / table.sum())
    starts = [0]
    pooled = 0.0
    for place, images in enumerate(expected):
        if pooled >= LEAST_EXPECTED:
            starts.append(place)
            pooled = 0.0
        pooled += images
    if pooled < LEAST_EXPECTED and len(starts) > 1:
        starts.pop()
    cells = np.add.reduceat(table, starts, axis=1)
    return _p_of_counts(cells, cells.sum(1, keepdims=True) * cells.sum(0) / cells.sum())


def _p_of_counts(counts: np.ndarray, expected: np.ndarray) -> float:
    """Return the p-value of Pearson's chi-square test with K − 1 degrees of freedom. counts, expected: [1 or 2 samples, K]."""
    from scipy.special import chdtrc  # scipy.stats takes half a second to import

    freedom = counts.shape[1] - 1
    return float(chdtrc(freedom, ((counts - expected) ** 2 / expected).sum())) if freedom else 1.0
