"""Rows of arrays that are read in one go: only those that follow each other in one array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elbocli.images.array_rows import Pixels, read_rows

ROWS = np.arange(6 * 12, dtype=np.uint8).reshape(6, 2, 2, 3)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two files of the same rows."""
    for name in "ab":
        (tmp_path / name).write_bytes(ROWS.tobytes())
    return [str(tmp_path / name) for name in "ab"]


def test_rows_that_follow_each_other_are_read(files: list[str]) -> None:
    found = read_rows([Pixels(files[0], 12 * k, (2, 2, 3)) for k in range(2, 5)])
    assert found is not None and np.array_equal(found, ROWS[2:5])


@pytest.mark.parametrize(
    "places",
    [[(0, 0), (1, 12)], [(0, 0), (0, 24)], [(0, 12), (0, 0)], [(0, 0), (0, 0)]],
    ids=["another file", "a gap", "backwards", "twice"],
)
def test_others_are_not(places: list[tuple[int, int]], files: list[str]) -> None:
    assert read_rows([Pixels(files[which], offset, (2, 2, 3)) for which, offset in places]) is None


def test_rows_of_another_shape_are_not(files: list[str]) -> None:
    assert read_rows([Pixels(files[0], 0, (2, 2, 3)), Pixels(files[0], 12, (4, 1, 3))]) is None
