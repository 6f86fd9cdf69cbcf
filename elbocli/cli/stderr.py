"""Standard error, when nobody is there to read it any more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def heard() -> Iterator[None]:
    """Speak in the block, and from then on to nobody when the terminal is closed, the reader of a pipe gone or a disk full.

    What is told to people is worth less than the work it is about.
    """
    try:
        yield
    except OSError:
        nobody = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nobody, STDERR)
        os.close(nobody)
