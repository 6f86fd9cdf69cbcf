"""Prep as tests call it: a source or several, what it says, and a hook at each report of progress."""

import contextlib
import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import heard

from elbocli.files.dataset import Dataset
from elbocli.images import sources as sources_module
from elbocli.images.registry import Images
from elbocli.prep.pack import Settings, pack_images

At = Callable[[int], object]


def listed(sources: Path | Sequence[Path]) -> Sequence[Path]:
    """A source alone as a list of one."""
    return [sources] if isinstance(sources, Path) else sources


def pack(
    sources: Path | Sequence[Path], out: Path, level: int = logging.INFO, at: At = lambda done: None, **settings: Any
) -> list[str]:
    """Pack a source or several. Returns what was said. at: is called with the number of images that are done."""
    with heard(lambda done, *_: at(done), level) as said:
        pack_images(listed(sources), out, Settings(**settings))
    return said


def packed(sources: Path | Sequence[Path], out: Path, **settings: Any) -> Dataset:
    """Pack a source or several. Returns the dataset."""
    pack(sources, out, **settings)
    return Dataset(out)


def open_source(sources: Path | Sequence[Path], **options: Any) -> Images:
    """Open a source or several."""
    return sources_module.open_source(listed(sources), **options)


def touch(root: Path, *names: str) -> Path:
    """Make empty files of those names below a folder. Returns the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


class Stopped(Exception):
    """Raised by `stop_after`."""


def stop_after(count: int) -> At:
    """A function for `pack(at=…)` that ends the work in the middle, as an error would, once so many are done."""

    def stop(done: int) -> None:
        if done >= count:
            raise Stopped

    return stop


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside the block no file may grow beyond so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
