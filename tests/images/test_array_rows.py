"""Rows of arrays that are read in one go: only those that follow each other in one array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elbocli.images.image_refs import ArrayRow, FileRows, read_rows

ROWS = np.arange(6 * 12, dtype=np.uint8).reshape(6, 2, 2, 3)


@pytest.fixture
def arrays(tmp_path: Path) -> list[FileRows | np.ndarray]:
    """The same rows in a file and in memory."""
    (tmp_path / "a").write_bytes(ROWS.tobytes())
    return [FileRows(str(tmp_path / "a"), 0, ROWS.shape), ROWS]


def test_rows_that_follow_each_other_are_read(arrays: list[FileRows | np.ndarray]) -> None:
    for array in arrays:
        found = read_rows([ArrayRow(array, k) for k in range(2, 5)])
        assert found is not None and np.array_equal(found, ROWS[2:5])


@pytest.mark.parametrize(
    "places",
    [[(0, 0), (1, 1)], [(0, 0), (0, 2)], [(0, 1), (0, 0)], [(0, 0), (0, 0)]],
    ids=["another array", "a gap", "backwards", "twice"],
)
def test_others_are_not(places: list[tuple[int, int]], arrays: list[FileRows | np.ndarray]) -> None:
    assert read_rows([ArrayRow(arrays[which], row) for which, row in places]) is None
