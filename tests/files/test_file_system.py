"""File systems without locks, without room to claim, without folders that can be flushed: injected, as they answer."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elbocli.errors import DataError
from elbocli.files import atomic, file_system
from elbocli.files.checkpoint import checkpoints
from elbocli.files.dataset import Dataset
from elbocli.merge import combine
from elbocli.prep import pack
from elbocli.run.settings import resolve
from elbocli.runtime.progress import Progress
from elbocli.sample import draw
from elbocli.train import loop

WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
WITHOUT_ROOM = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
WITHOUT_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP)
UNLOCKED = "the file system knows no locks; see to it that no other elbo process writes here"


def answers(patch: pytest.MonkeyPatch, place: Any, name: str, number: int, folders: bool = False) -> list[int]:
    """Make a call fail with an error number, or (folders) only those for folders; a list that grows with each."""
    real, calls = getattr(place, name), list[int]()

    def call(handle: int, *args: Any) -> Any:
        if folders and not os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            return real(handle, *args)
        calls.append(number)
        raise OSError(number, os.strerror(number))

    patch.setattr(place, name, call)
    return calls


def warned(reports: Iterator[Progress]) -> list[str]:
    return [report.message for report in reports if report.level == "warning"]


@pytest.mark.parametrize("number", WITHOUT_LOCKS)
def test_without_locks_all_that_writes_goes_on_with_a_warning(
    number: int, digits: Path, digits_folder: Path, preset: Path, trained: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    calls = answers(monkeypatch, fcntl, "flock", number)
    resolved = resolve({"preset": str(preset), "steps": 4}, Dataset(digits))
    assert warned(loop.run(Dataset(digits), tmp_path / "run", resolved)) == [f"{tmp_path / 'run'}: {UNLOCKED}"]
    assert len(checkpoints(tmp_path / "run")) == 1
    out = tmp_path / "a.h5"
    assert warned(pack.run(digits_folder, out, pack.Settings(size=8))) == [f"{out}: {UNLOCKED}"]
    assert warned(combine.run([out], tmp_path / "b.h5")) == [f"{tmp_path / 'b.h5'}: {UNLOCKED}"]
    out = tmp_path / "a.npy"
    assert warned(draw.run(trained, out, draw.SampleSettings(n=2, steps=2))) == [f"{out}: {UNLOCKED}"]
    assert len(np.load(out)) == 2 and calls
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a.h5", "b.h5", "a.npy"}


@pytest.mark.parametrize("number", WITHOUT_FLUSH)
def test_folders_that_cant_be_flushed_stop_nobody(
    number: int, digits: Path, preset: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    calls = answers(monkeypatch, os, "fsync", number, folders=True)
    resolved = resolve({"preset": str(preset), "steps": 4, "save_every": 1, "snapshot_every": 2}, Dataset(digits))
    assert warned(loop.run(Dataset(digits), tmp_path / "run", resolved)) == []
    assert len(checkpoints(tmp_path / "run")) == 2 and len(calls) > 10


@pytest.mark.parametrize("number", WITHOUT_ROOM)
def test_room_that_cant_be_claimed_is_not(
    number: int, digits_folder: Path, trained: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    calls = answers(monkeypatch, os, "posix_fallocate", number)
    assert warned(pack.run(digits_folder, tmp_path / "a.h5", pack.Settings(size=8))) == []
    list(draw.run(trained, tmp_path / "a.npy", draw.SampleSettings(n=2, steps=2)))
    assert len(Dataset(tmp_path / "a.h5")) == 300 and len(np.load(tmp_path / "a.npy")) == 2
    assert len(calls) == 3


def test_a_full_or_broken_disk_is_no_lack(tmp_path: Path, monkeypatch: Any) -> None:
    for name, number in (("posix_fallocate", errno.ENOSPC), ("fsync", errno.EIO)):
        answers(monkeypatch, os, name, number)
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match="No space left"):
        file_system.claim_room(file.fileno(), 0, 10)
    with pytest.raises(OSError, match="Input/output"):
        file_system.flush_folder(tmp_path)
    answers(monkeypatch, fcntl, "flock", errno.EIO)
    with pytest.raises(DataError, match="lock: could not lock: Input/output"), atomic.locked(tmp_path / "lock", "run"):
        pass


def test_a_folder_that_may_not_be_read_is_written_all_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    def denied(path: Any, *args: Any) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args)

    real = os.open
    monkeypatch.setattr(os, "open", denied)
    atomic.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
