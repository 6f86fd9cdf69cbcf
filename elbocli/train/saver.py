"""Writes checkpoints and snapshots while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from elbocli.errors import DataError
from elbocli.runtime.background import Background

MOST_FAILURES = 3


class Saver:
    """One write at a time, by a thread; `warnings` collects what failed.

    A checkpoint that fails, as on a full disk, is a warning, because the next may succeed. The third in a row is an
    error. A snapshot that fails is a warning always: nothing goes on from it.
    """

    def __init__(self) -> None:
        self._background = Background("saver")
        self._busy: Future[object] | None = None
        self._vital = True
        self.failures = 0
        self._last: DataError | None = None
        self.warnings: list[str] = []

    def start(self, write: Callable[[], object], vital: bool = True) -> None:
        """Write when the write before has ended; waits for that. Raises DataError as `look` does.

        vital: what is written is a checkpoint, not a snapshot.
        """
        self.finish()
        self._busy, self._vital = self._background.start(write), vital

    def look(self) -> None:
        """Notice how the last write ended, if it did. Raises DataError when it was the third checkpoint in a row to fail."""
        if self._busy is None or not self._busy.done():
            return
        done, self._busy = self._busy, None
        try:
            done.result()
        except DataError as error:
            if self._vital:
                self.failed(error)
            else:
                self.warnings.append(f"{error}; training goes on without this snapshot")
        else:
            self.failures = 0 if self._vital else self.failures

    def failed(self, error: DataError) -> None:
        """Count a checkpoint that failed. Raises its error when it is the third in a row."""
        self.failures, self._last = self.failures + 1, error
        if self.failures >= MOST_FAILURES:
            raise DataError(f"{error}; {self.failures} times in a row, so training ends; earlier checkpoints are whole")
        self.warnings.append(f"{error}; training goes on ({self.failures} of {MOST_FAILURES} times in a row)")

    def finish(self) -> None:
        """Wait for the write in progress. Raises DataError as `look` does."""
        if self._busy is not None:
            self._busy.exception()
        self.look()

    def settle(self) -> None:
        """Wait as `finish` does. Raises DataError when the last checkpoint failed, because none will follow."""
        self.finish()
        if self.failures and self._last is not None:
            self.warnings.clear()
            raise self._last

    def close(self) -> None:
        """Let the write in progress end, whatever comes of it."""
        self._background.close()
