"""The logs of a run: no step is in them twice, and none is lost while the disk is full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from elbocli.files.atomic import told

NAMES = ("metrics.jsonl", "losslog.jsonl", "validation.jsonl")


class Journal:
    """Logs that only grow, cut back to a checkpoint's lengths when a run goes on.

    What can't be written now is kept and written before what follows. Raises DataError from `__init__` and `flush`.
    """

    def __init__(self, run: Path, lengths: dict[str, int]):
        self.run = run
        self._files: dict[str, IO[bytes]] = {}
        self._waiting: dict[str, bytes] = dict.fromkeys(NAMES, b"")
        self.lengths = dict.fromkeys(NAMES, 0)
        for name in NAMES:
            path = run / name
            if path.exists():
                with told(path):
                    self.lengths[name] = min(lengths.get(name, 0), path.stat().st_size)  # somebody may have cut it
                    os.truncate(path, self.lengths[name])

    def write(self, name: str, text: str) -> str:
        """Append to one of them; why that has to wait, or nothing."""
        self._waiting[name] += text.encode()
        try:
            self._write(name)
        except OSError as error:
            return f"{self.run / name}: could not write: {error.strerror or error}; kept for later"
        return ""

    def _write(self, name: str) -> None:
        if self._waiting[name] and name not in self._files:
            self._files[name] = open(self.run / name, "ab", buffering=0)  # noqa: SIM115 - open for as long as the run
        while self._waiting[name]:
            count = self._files[name].write(self._waiting[name]) or 0
            self._waiting[name] = self._waiting[name][count:]
            self.lengths[name] += count

    def flush(self) -> dict[str, int]:
        """Hand everything to the system: lengths in bytes, of those that hold anything. `sync` makes them safe."""
        for name in NAMES:
            with told(self.run / name):
                self._write(name)
        return {name: length for name, length in self.lengths.items() if length}

    def sync(self) -> None:
        """Make safe what was flushed. May be called by another thread."""
        for name, file in list(self._files.items()):
            with told(self.run / name):
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close all."""
        for file in self._files.values():
            file.close()
