"""A class for each image to be drawn, as `--classes` says it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from elbocli.core.registry import nearest
from elbocli.core.streams import Stream
from elbocli.errors import UsageError

LONGEST = 20
"""Characters of a number: to read more takes long."""


def choose_labels(
    classes: str,
    n: int,
    num_classes: int,
    seed: int,
    names: list[str] | None = None,
    random: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray | None:
    """A class per image: `balanced` (i mod K), `random`, or a list of numbers or names, repeated to length.

    random: n → the random ones, instead of those of the seed. None when there are no classes. Raises UsageError for a class that isn't there, or a word that means two.
    """
    if num_classes < 1:
        if classes not in ("balanced", "random"):
            raise UsageError(f"--classes {classes}: the run is unconditional; leave it out")
        return None
    if classes == "balanced":
        return np.arange(n) % num_classes
    if classes == "random":
        return random(n) if random else random_classes(n, num_classes, seed)
    words = [word.strip() for word in classes.split(",")]
    numbers = {word: _number(word, num_classes, names or []) for word in dict.fromkeys(words)}
    return np.resize([numbers[word] for word in words], n)


def random_classes(n: int, num_classes: int, seed: int) -> np.ndarray:
    """A class per image, of (seed, i) alone."""
    stream = Stream(seed, "sample-class")
    return np.array([stream.at(i).integers(num_classes) for i in range(n)])


def _number(word: str, num_classes: int, names: list[str]) -> int:
    """The class that a word means, by name or by number. Raises UsageError when there is none or more than one."""
    found = {k for k, name in enumerate(names) if name == word}
    if word.isascii() and word.isdecimal() and len(word) < LONGEST and int(word) < num_classes:
        found.add(int(word))
    if not found:
        named = [name for name in names if not name.isdecimal()]
        known = f"balanced, random, {'names, ' if names else ''}or numbers from 0 to {num_classes - 1}"
        which = f"; {nearest(word, named)}" if named else ""
        raise UsageError(f"--classes: no class {word!r}; expected {known}{which}")
    if len(found) > 1:
        meanings = " and ".join(f"class {k}, named {names[k]!r}" for k in sorted(found))
        digits = 1 + max((len(name) for name in names if name.isdecimal()), default=0)
        plain = " or ".join(f"{k:0{digits}}" for k in sorted(found))
        raise UsageError(f"--classes: {word!r} means {meanings}; write {plain}, which is no name")
    return found.pop()
