"""Rows of pictures: the right ones, in order, of bounded size."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elbocli.errors import DataError
from elbocli.files.grid import CELL, by_class, lay_out, rows_of_classes, write_grid
from elbocli.report.thumbnails import (
    CLASSES,
    ROW,
    TIMES,
    Thumbnails,
    chosen_times,
    read_by_class,
    read_sheet,
    strips,
    thumbnails_of,
)


def pixels(row: Thumbnails) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row.png)))


def numbered(count: int, side: int = 4, channels: int = 1) -> np.ndarray:
    """Image i is grey i."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, channels)).copy()


@pytest.mark.parametrize("count", [0, 1, TIMES, TIMES + 1, 40, 1000])
def test_the_first_and_the_last_preview_are_shown(count: int) -> None:
    chosen = chosen_times(count)
    assert chosen == sorted(set(chosen)) and len(chosen) <= TIMES
    assert not count or (chosen[0], chosen[-1]) == (0, count - 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_preview_is_cut_up_as_it_was_put_together(channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 5, 5, channels), np.uint8)
    groups = rows_of_classes(64, np.arange(64) % 3, ["ant", "bee"])
    write_grid(tmp_path / "a.png", images, lay_out(5, 5, groups))
    read, found = read_sheet(tmp_path / "a.png")
    assert np.array_equal(read, np.broadcast_to(images, (64, 5, 5, 3))) and found == groups


def test_what_is_no_sheet_is_refused(tmp_path: Path) -> None:
    Image.new("L", (9, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    for name, words in (("a.png", "no sheet"), ("b.png", "b.png"), ("c.png", "c.png")):
        with pytest.raises(DataError, match=words):
            read_sheet(tmp_path / name)


def made(images: np.ndarray, labels: np.ndarray | None, names: list[str]) -> list[Thumbnails]:
    return strips(lambda index: images[index], by_class(len(images), labels, names, CLASSES))


def greys(row: Thumbnails) -> list[int]:
    """The grey of each picture of a row."""
    return pixels(row)[0, ::CELL].tolist()


@pytest.mark.parametrize(("side", "shown"), [(1, 96), (28, 84), (64, 64), (96, 96), (97, 96), (500, 96)])
def test_small_pictures_are_enlarged_pixel_by_pixel_and_large_ones_made_smaller(side: int, shown: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 1), np.uint8)
    row = pixels(thumbnails_of("", [image, image]))
    assert row.shape == (shown, 2 * shown)
    if side <= shown:
        assert np.array_equal(row, np.kron(np.hstack([image[..., 0]] * 2), np.ones((shown // side,) * 2, np.uint8)))


def test_each_class_has_its_first_images() -> None:
    rows = made(numbered(40), np.arange(40) % 3, ["ant", "bee"])
    assert [row.name for row in rows] == ["ant", "bee", "2"]
    for number, row in enumerate(rows):
        assert greys(row) == [number + 3 * i for i in range(ROW)]


def test_without_classes_to_tell_apart_all_are_shown_in_order() -> None:
    for labels in (None, np.zeros(20, np.int64)):
        rows = made(numbered(20), labels, ["all"])
        assert [row.count for row in rows] == [8, 8, 4] and not any(row.name for row in rows)
        assert greys(rows[2]) == [16, 17, 18, 19]


def test_a_label_below_zero_is_no_class_from_the_end() -> None:
    assert [row.name for row in made(numbered(4), np.array([-1, 0, -1, 0]), ["ant", "bee"])] == ["-1", "ant"]


def test_of_many_classes_some_are_shown_from_the_first_to_the_last() -> None:
    rows = made(numbered(200), np.arange(200) // 2, [f"class {i}" for i in range(100)])
    assert len(rows) == CLASSES and (rows[0].name, rows[-1].name) == ("class 0", "class 99")


@pytest.mark.parametrize("labelled", [True, False])
def test_of_a_file_of_samples_the_same_are_shown(labelled: bool, tmp_path: Path) -> None:
    images, labels = numbered(150, channels=3), np.arange(150) // 15
    names = [f"n{i}" for i in range(10)]
    np.savez(tmp_path / "s.npz", *([images, labels] if labelled else [images]))
    assert read_by_class(tmp_path / "s.npz", names) == made(images, labels if labelled else None, names)
