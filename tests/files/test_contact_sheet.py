"""Many images as one picture: each at its place, pixel for pixel, behind the name of its class."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import cut_up
from PIL import Image

from elbocli.files.contact_sheet import (
    LETTER,
    MOST_LETTERS,
    PAPER,
    WIDE,
    Group,
    by_class,
    draw_contact_sheet,
    lay_out,
    rows_of_classes,
    write_contact_sheet,
)

HOSTILE = "<b>&\x1b[31m\n\u202e\ud800"


@given(
    count=st.integers(1, 40),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 3]),
    classes=st.integers(0, 20),
    scale=st.integers(0, 5),
)
@settings(max_examples=30)
def test_every_image_is_at_its_place(count, size, channels, classes, scale):
    images = np.random.default_rng(0).integers(0, 200, (count, *size, channels), np.uint8)
    labels = np.arange(count) % classes if classes else None
    layout = lay_out(size[0], size[1], rows_of_classes(count, labels, ["ant", HOSTILE]), scale)
    file = io.BytesIO()
    write_contact_sheet(file, images, layout)
    with Image.open(file) as picture:
        assert picture.size == layout.size
        assert np.array_equal(cut_up(picture, layout), images)


def numbered(count, side):
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 1))


def test_a_class_has_rows_of_its_own_behind_its_name():
    groups = rows_of_classes(6, np.array([2, 0, 2, 2, 0, 2]), ["ant", "bee"])
    assert groups == [Group("ant", [1, 4]), Group("2", [0, 2, 3, 5])]
    layout = lay_out(20, 20, groups, 1)
    sheet = np.asarray(draw_contact_sheet(numbered(6, 20), layout))
    assert layout.columns == 3 and layout.gutter == 1 and sheet.shape == (62, layout.left + 62)
    assert sheet[::21, layout.left :: 21].tolist() == [[1, 4, PAPER], [0, 2, 3], [5, PAPER, PAPER]]
    names = sheet[:, : layout.left]
    between = sheet[:, layout.left :]
    assert (between[[20, 41]] == PAPER).all() and (between[:, [20, 41]] == PAPER).all(), "the gutter"
    assert names[:20].min() < PAPER > names[21:].min() and not np.array_equal(names[:20], names[21:41])


@pytest.mark.parametrize(
    ("side", "count", "scale"), [(1, 1, 96), (8, 1, 12), (32, 1, 3), (33, 1, 2), (49, 1, 1), (28, 10_000, 1), (8, 10_000, 5)]
)
def test_images_are_enlarged_as_often_as_a_cell_and_the_width_have_room(side, count, scale):
    layout = lay_out(side, side, rows_of_classes(count, None))
    assert layout.scale == scale and layout.columns * side * scale <= WIDE


@pytest.mark.parametrize(
    ("count", "classes", "rows"), [(64, 16, 16), (64, 17, 1), (64, 64, 1), (400, 20, 20), (10_000, 100, 100)]
)
def test_many_classes_of_few_images_have_no_rows_of_their_own(count, classes, rows):
    groups = rows_of_classes(count, np.arange(count) % classes)
    assert len(groups) == rows and sorted(i for group in groups for i in group.images) == [*range(count)]


def test_of_many_classes_some_are_taken_and_names_have_nothing_that_is_not_seen():
    groups = by_class(300, np.arange(300) // 3, [f"c{k}" for k in range(100)], 5)
    assert [group.name for group in groups] == ["c0", "c25", "c50", "c74", "c99"]
    assert groups[-1].images == [297, 298, 299]
    names = [group.name for group in by_class(3, np.array([0, 1, -1]), [HOSTILE, "\n\t "])]
    assert names == ["-1", "<b>&[31m", "1"]


@pytest.mark.parametrize("side", [8, 512])
def test_a_long_name_is_cut_within_its_strip(side):
    def strip(name, scale=1):
        layout = lay_out(side // scale, side // scale, [Group(name, [0])], scale)
        assert 0 < layout.left <= (MOST_LETTERS + 1) * max(LETTER, side // 8) + 2
        return np.asarray(draw_contact_sheet(numbered(1, side // scale), layout))[:, : layout.left]

    assert np.array_equal(strip("ab" * 100), strip("ab" * 90)) and strip("ab").shape != strip("ab" * 90).shape
    assert (strip("ab" * 100)[:, -1] == PAPER).all() and np.array_equal(strip("ab", 4), strip("ab"))
