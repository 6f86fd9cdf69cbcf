"""Pictures while training: rows are classes with their names."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from elbocli.core.class_labels import choose_labels
from elbocli.files.dataset import Dataset
from elbocli.files.grid import CELL, PLACES, layout_of, rows_of_classes
from elbocli.run import settings
from elbocli.train import loop
from elbocli.train.preview import PREVIEW, preview_labels


@pytest.mark.parametrize("classes", [1, 2, 9, 10])
def test_few_classes_are_all_drawn_in_turns(classes: int) -> None:
    assert np.array_equal(preview_labels(classes), choose_labels("balanced", PREVIEW.n, classes, 0))


@pytest.mark.parametrize("classes", [11, 37, 1000])
def test_of_many_classes_some_fill_whole_rows(classes: int) -> None:
    labels = preview_labels(classes)
    groups = rows_of_classes(PREVIEW.n, labels)
    assert len(groups) == 8 and {len(group.images) for group in groups} == {8}
    assert (groups[0].name, groups[-1].name) == ("0", str(classes - 1))


def test_without_classes_there_are_no_labels() -> None:
    assert preview_labels(0) is None


def test_a_preview_names_the_classes_of_its_rows(digits: Path, preset: Path, tmp_path: Path) -> None:
    path, names = Path(shutil.copy(digits, tmp_path / "named.h5")), [f"digit {k}" for k in range(10)]
    with h5py.File(path, "r+") as file:
        file["class_names"][:] = names
    resolved = settings.resolve({"preset": str(preset), "steps": 1, "preview_every": 1}, Dataset(path))
    list(loop.run(Dataset(path), tmp_path / "run", resolved))
    with Image.open(tmp_path / "run" / "previews" / "step-00000001.png") as picture:
        layout = layout_of(picture.info[PLACES], picture.size, path)
    assert [group.name for group in layout.groups] == names
    assert layout.height * layout.scale == CELL and layout.groups[3].images == list(range(3, 64, 10))
