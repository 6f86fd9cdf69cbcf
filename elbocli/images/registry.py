"""Kinds of image sources: each is declared by @source, elbo's own in a file of `images/kinds` each.

@source("frames", suffix=".frames")
def frames(path):
    for number, pixels in enumerate(read_frames(path)):
        yield f"{number}", "a class or None", ArrayRow(...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from elbocli.errors import DataError
from elbocli.files.reading import open_file
from elbocli.images.image_refs import ImageRef

Word = str | int
Row = tuple[str, Word | None, ImageRef]
Complain = Callable[[str], None]
F = TypeVar("F", bound=Callable[..., Any])
HEAD = 512


@dataclass
class Images:
    """Images in order. labels: the word or number of each image's class, None without; all None where nothing has one.

    classes: the names of classes that are numbers. in_order: whether the images can only be read one after another.
    notes: what a person should know of what was taken.
    """

    names: Sequence[str]
    labels: Sequence[Word | None] | None
    refs: Sequence[ImageRef]
    classes: Sequence[str] = ()
    in_order: bool = False
    notes: list[str] = field(default_factory=list)


def numbered(count: int) -> list[str]:
    """Names of images that have none: their numbers."""
    return [str(number) for number in range(count)]


@dataclass(frozen=True)
class SourceKind:
    """A kind of source. tree: it lists files by their paths, whose folders may be classes; otherwise it has images."""

    name: str
    open: Callable[..., Any]
    begins: bytes
    suffix: str
    test: Callable[[Path, bytes], bool] | None
    tree: bool

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether a file is of this kind. head: its first bytes."""
        return (
            head.startswith(self.begins)
            and path.name.lower().endswith(self.suffix)
            and (self.test is None or self.test(path, head))
        )


KINDS: list[SourceKind] = []


def source(
    name: str,
    *,
    magic: bytes = b"",
    suffix: str = "",
    test: Callable[[Path, bytes], bool] | None = None,
    tree: bool = False,
) -> Callable[[F], F]:
    """Declare a function of a path that yields (name, class or None, reference) of each image.

    A file is of this kind if it begins with `magic`, its name ends in `suffix`, and test(path, first 512 bytes) is true.
    """

    def declare(function: F) -> F:
        KINDS.append(SourceKind(name, function, magic, suffix, test, tree))
        return function

    return declare


def kinds() -> list[SourceKind]:
    """All kinds in the order in which they are tried: those of plug-ins first, then elbo's own by their names."""
    return sorted(KINDS, key=lambda kind: (kind.open.__module__.startswith("elbocli."), kind.name))


def kind_of(path: Path) -> SourceKind | None:
    """Find the kind of a file or folder, None where it is of none. Raises DataError."""
    head = b""
    if not path.is_dir():
        try:
            with open_file(path) as file:
                head = file.read(HEAD)
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}") from error
    return next((kind for kind in kinds() if kind.matches(path, head)), None)


def images_of(rows: Iterable[Row] | Images) -> Images:
    """Collect what a function of @source yields into lists."""
    if isinstance(rows, Images):
        return rows
    names, labels, refs = [], [], []
    for name, label, ref in rows:
        names.append(name)
        labels.append(label)
        refs.append(ref)
    return Images(names, None if all(label is None for label in labels) else labels, refs)


def clean(name: str) -> str:
    """Clean a path of an archive of '.', '..', leading slashes and backslashes."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def printable(name: str) -> str:
    """A name for people, with escapes for characters that would move their cursor or are no text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def hidden(name: str) -> bool:
    """Whether any part of a path is hidden (begins with a dot), or is macOS's or Windows' own."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in name.split("/"))
