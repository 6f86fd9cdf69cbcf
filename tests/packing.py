"""Messages of elbo's log, and prep from tests."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from elbocli.images import sources as sources_module
from elbocli.images.registry import Images
from elbocli.prep.pack import Settings, pack_images
from elbocli.runtime import progress


class _Listed(logging.Handler):
    def __init__(self, texts: list[str], level: int):
        super().__init__(level)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def messages(level: int = logging.INFO) -> Iterator[list[str]]:
    """The messages of elbo's log that come within the block."""
    log, texts = logging.getLogger("elbo"), list[str]()
    handler, before = _Listed(texts, level), log.level
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield texts
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def pack(sources: Path | Sequence[Path], out: Path, level: int = logging.INFO, **settings: Any) -> list[str]:
    """Pack a source or several; what was said."""
    with messages(level) as said:
        pack_images([sources] if isinstance(sources, Path) else sources, out, Settings(**settings))
    return said


def open_source(sources: Path | Sequence[Path], **options: Any) -> Images:
    """Open a source or several."""
    return sources_module.open_source([sources] if isinstance(sources, Path) else sources, **options)


@contextlib.contextmanager
def at_progress(call: Callable[[int], object]) -> Iterator[None]:
    """Have `call(done)` called at each progress that is reported within the block."""
    progress.show_progress_with(lambda done, *_: call(done))
    try:
        yield
    finally:
        progress.show_progress_with(lambda *_: None)


class Stopped(Exception):
    """Raised by `stop_after`."""


def stop_after(count: int) -> Callable[[int], None]:
    """A function for `at_progress` that ends the work in the middle, as an error would, once so many are done."""

    def stop(done: int) -> None:
        if done >= count:
            raise Stopped

    return stop
