"""A large file in the making: what is written at once, and what a writer that was killed at the end left beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.files import resumable
from elbocli.files.atomic import locked
from elbocli.files.resumable import AT_ONCE, _blocks, clear_left

LEFT = ("x.h5.lock", "x.h5.partial", "x.h5.partial.json", "x.h5.partial.runs")


def left(folder: Path, names: tuple[str, ...] = LEFT, younger: bool = False) -> Path:
    """A file that was made after its journal, or before it, and what lies beside it."""
    for name in (*names, "x.h5", "y.h5.lock"):
        (folder / name).touch()
    if (folder / LEFT[2]).exists():
        os.utime(folder / LEFT[2], ns=(0, 2 * 10**18 if younger else 10**18))
    os.utime(folder / "x.h5", ns=(0, 15 * 10**17))
    return folder / "x.h5"


@pytest.mark.parametrize("names", [LEFT, LEFT[:1], LEFT[2:], LEFT[1:2]])
def test_it_is_removed_by_the_next_start(names: tuple[str, ...], tmp_path: Path) -> None:
    out = left(tmp_path, names)
    clear_left(out)
    assert sorted(os.listdir(tmp_path)) == ["x.h5", "y.h5.lock"]


def test_work_with_overwrite_stays(tmp_path: Path) -> None:
    out = left(tmp_path, younger=True)
    clear_left(out)
    assert sorted(os.listdir(tmp_path)) == ["x.h5", *LEFT[1:], "y.h5.lock"]


def test_what_another_process_holds_stays(tmp_path: Path) -> None:
    out = left(tmp_path)
    with locked(tmp_path / LEFT[0], "x"):
        clear_left(out)
    assert all((tmp_path / name).exists() for name in LEFT)


@pytest.mark.parametrize(
    "line",
    ["prep {images} x.h5", "merge x.h5 {digits}", "sample {trained} -n 1 --steps 1 -o x.h5"],
    ids=lambda line: line.split()[0],
)
def test_commands_remove_it(
    line: str, elbo: Callable[..., Any], digits: Path, digits_folder: Path, trained: Path, tmp_path: Path
) -> None:
    left(tmp_path)
    done = elbo(*line.format(images=digits_folder, digits=digits, trained=trained).split(), cwd=tmp_path)
    assert done.returncode == 2 and b"already exists" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["x.h5", "y.h5.lock"]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_what_is_written_at_once_are_whole_rows_and_no_more_than_fits(lengths: list[int], most: int) -> None:
    rows = [bytes([k]) * length for k, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resumable, "AT_ONCE", most)
        blocks = [bytes(block) for block in _blocks(rows)]
        arrays = [bytes(block) for block in _blocks([np.frombuffer(row, np.uint8) for row in rows])]
    assert blocks == arrays and b"".join(blocks) == b"".join(rows)
    assert all(len(block) <= most or block in rows for block in blocks)
    assert all(len(a) + len(b[: b.count(b[:1])]) > most for a, b in pairwise(blocks))


def test_rows_that_come_together_are_not_copied() -> None:
    rows = np.zeros((3, AT_ONCE // 2, 1), np.uint8)
    assert all(np.shares_memory(np.frombuffer(block, np.uint8), rows) for block in _blocks(rows))
    assert all(np.shares_memory(np.frombuffer(block, np.uint8), rows) for block in _blocks([rows[:2], rows[2:]]))
