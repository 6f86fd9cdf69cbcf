"""Many images as one picture: each at its place, pixel for pixel, behind the name of its class."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from elbocli.errors import FormatError
from elbocli.files.grid import (
    CELL,
    LETTER,
    MOST_CLASSES,
    MOST_LETTERS,
    PAPER,
    PLACES,
    WIDE,
    Group,
    by_class,
    cut_up,
    draw_grid,
    lay_out,
    layout_of,
    rows_of_classes,
    whole_factor,
    write_grid,
)

HOSTILE = "<b>&\x1b[31m\n\u202e\ud800"


def noise(count: int, height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (count, height, width, channels), np.uint8)


@given(
    count=st.integers(1, 40),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 3]),
    classes=st.integers(0, 20),
    scale=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_image_can_be_had_back_from_the_file_alone(
    count: int, size: tuple[int, int], channels: int, classes: int, scale: int
) -> None:
    images = noise(count, *size, channels)
    labels = np.arange(count) % classes if classes else None
    layout = lay_out(*size, rows_of_classes(count, labels, ["ant", HOSTILE]), scale)
    file = io.BytesIO()
    write_grid(file, images, layout)
    with Image.open(file) as picture:
        found = layout_of(picture.info[PLACES], picture.size, "x.png")
        sheet = np.asarray(picture).reshape(*picture.size[::-1], channels)
    assert found == layout and sheet.shape[:2] == layout.size[::-1]
    assert np.array_equal(cut_up(sheet, found), images)


def test_without_classes_images_stand_in_reading_order() -> None:
    images = noise(5, 2, 3, 1)
    sheet = np.asarray(draw_grid(images, lay_out(2, 3, rows_of_classes(5, None), 1)))
    expected = np.vstack([np.hstack([*images[:3, ..., 0]]), np.hstack([*images[3:, ..., 0], np.full((2, 3), PAPER)])])
    assert np.array_equal(sheet, expected)


def test_a_class_has_rows_of_its_own_behind_its_name() -> None:
    labels = np.array([2, 0, 2, 2, 0, 2])
    groups = rows_of_classes(6, labels, ["ant", "bee"])
    assert groups == [Group("ant", [1, 4]), Group("2", [0, 2, 3, 5])]
    images = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 20, 20, 1))
    layout = lay_out(20, 20, groups, 1)
    sheet = np.asarray(draw_grid(images, layout))
    assert layout.columns == 3 and sheet.shape == (60, layout.left + 60)
    assert sheet[::20, layout.left :: 20].tolist() == [[1, 4, PAPER], [0, 2, 3], [5, PAPER, PAPER]]
    names = sheet[:, : layout.left]
    assert (names[:20] < PAPER).any() and (names[20:] < PAPER).any()
    assert not np.array_equal(names[:20], names[20:40]), "each has its own name"


@pytest.mark.parametrize(
    ("side", "scale"), [(1, 96), (8, 12), (28, 3), (32, 3), (33, 2), (48, 2), (49, 1), (64, 1), (300, 1)]
)
def test_small_images_are_enlarged_as_often_as_a_cell_has_room(side: int, scale: int) -> None:
    assert whole_factor(side) == scale and lay_out(side, side, [Group("", [0])]).scale == scale
    assert side * scale <= CELL < side * (scale + 1) or scale == 1
    assert lay_out(side, side, [Group("", [0])], 2).scale == 2


def test_many_images_are_enlarged_less_lest_the_picture_is_too_wide() -> None:
    layout = lay_out(28, 28, rows_of_classes(10_000, None))
    assert layout.scale == 1 and layout.size[0] <= WIDE
    assert lay_out(8, 8, rows_of_classes(10_000, None)).scale == WIDE // 800


@pytest.mark.parametrize(
    ("count", "classes", "apart"),
    [(64, 10, True), (64, MOST_CLASSES, True), (64, 17, False), (64, 64, False), (400, 20, True), (10_000, 100, True)],
)
def test_many_classes_of_few_images_have_no_rows_of_their_own(count: int, classes: int, apart: bool) -> None:
    groups = rows_of_classes(count, np.arange(count) % classes)
    assert len(groups) == (classes if apart else 1)
    assert sorted(i for group in groups for i in group.images) == list(range(count))


def test_of_many_classes_some_are_taken_from_the_first_to_the_last() -> None:
    groups = by_class(300, np.arange(300) // 3, [f"c{k}" for k in range(100)], 5)
    assert [group.name for group in groups] == ["c0", "c25", "c50", "c74", "c99"]
    assert groups[-1].images == [297, 298, 299]


def test_a_name_of_strangers_has_nothing_that_is_not_seen() -> None:
    (first, second) = by_class(2, np.array([0, 1]), [HOSTILE, "\n\t "])
    assert first.name == "<b>&[31m" and second.name == "1"


LAYOUT = lay_out(2, 2, [Group("a", [0, 2]), Group("b", [1])], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0},
        {"scale": "3"},
        {"scale": 3.0},
        {"scale": True},
        {"left": -1},
        {"columns": 10**9},
        {"height": 3},
        {"groups": []},
        {"groups": [["a", [0, 1]]]},
        {"groups": [["a", [0, 2]], ["b", [2]]]},
        {"groups": [["a", [0, 3]], ["b", [1]]]},
        {"groups": [["a", [0, -1]], ["b", [1]]]},
        {"groups": [["a", [0, 2]], ["b", [1]], ["c", []]]},
        {"groups": 7},
        None,
    ],
)
def test_places_that_are_not_those_of_the_picture_are_refused(change: dict[str, Any] | None) -> None:
    text = "{" if change is None else json.dumps({**LAYOUT.json(), **change})
    with pytest.raises(FormatError, match=r"x\.png: what it says of its images is damaged"):
        layout_of(text, LAYOUT.size, "x.png")
    assert layout_of(json.dumps(LAYOUT.json()), LAYOUT.size, "x.png") == LAYOUT


@pytest.mark.parametrize("side", [8, 28, 84, 512])
def test_a_long_name_is_cut_within_its_strip(side: int) -> None:
    def strip(name: str) -> np.ndarray:
        images = np.zeros((1, side, side, 1), np.uint8)
        layout = lay_out(side, side, [Group(name, [0])], 1)
        assert 0 < layout.left <= (MOST_LETTERS + 1) * max(LETTER, side // 8) + 2
        return np.asarray(draw_grid(images, layout))[:, : layout.left]

    assert np.array_equal(strip("ab" * 100), strip("ab" * 90)) and strip("ab").shape != strip("ab" * 90).shape
    assert (strip("ab" * 100)[:, -1] == PAPER).all()
