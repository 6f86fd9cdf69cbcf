"""`elbo info --grid`: the images of a file, by class, the same every time."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from elbocli.errors import DataError, FormatError
from elbocli.files.dataset import Dataset
from elbocli.files.grid import MOST_CLASSES, PLACES, cut_up, layout_of
from elbocli.info.describe import LEAST, SHOWN, images_of


def folder(path: Path, classes: int, each: int) -> Path:
    """Image i of class k is grey 10 k + i."""
    for k in range(classes):
        (path / f"class {k}").mkdir(parents=True)
        for i in range(each):
            Image.new("L", (8, 8), 10 * k + i).save(path / f"class {k}" / f"{i:02}.png")
    return path


@pytest.mark.parametrize("store", ["raw", "png", "webp"])
def test_a_dataset_has_a_row_for_each_class_however_it_is_stored(
    store: str, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    source = folder(tmp_path / "in", 3, 10)
    words = ("--size", 8, "--channels", 1, "--store", store)
    assert elbo("prep", source, "d.h5", *words, cwd=tmp_path).returncode == 0
    result = elbo("info", "d.h5", "--grid", "g.png", "--scale", 2, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"") and b"elbo-dataset" in result.stdout
    with Image.open(tmp_path / "g.png") as picture:
        layout = layout_of(picture.info[PLACES], picture.size, "g.png")
        images = cut_up(np.asarray(picture)[..., None], layout)
    assert layout.scale == 2
    found = {group.name: images[group.images, 0, 0, 0].tolist() for group in layout.groups}
    assert found == {f"class {k}": [10 * k + i for i in range(10)] for k in range(3)}


def test_images_are_spread_over_the_file_and_the_same_every_time(digits: Path) -> None:
    images, layout = images_of(digits)
    again, _ = images_of(digits)
    assert np.array_equal(images, again)
    data = Dataset(digits)
    for label, group in enumerate(layout.groups):
        rows = np.flatnonzero(data.labels == label)
        assert len(group.images) == LEAST
        for at, row in ((0, rows[0]), (-1, rows[-1])):
            assert np.array_equal(images[group.images[at]], data.batch([row])[0])


@pytest.mark.parametrize(("classes", "shown", "each"), [(1, 1, SHOWN), (2, 2, 32), (16, 16, LEAST), (40, 16, LEAST)])
def test_few_classes_have_more_images_each_and_many_are_thinned_out(
    classes: int, shown: int, each: int, tmp_path: Path
) -> None:
    assert MOST_CLASSES == 16
    labels = np.arange(80 * classes) % classes
    np.savez(tmp_path / "s.npz", arr_0=np.zeros((80 * classes, 4, 4, 1), np.uint8), arr_1=labels)
    images, layout = images_of(tmp_path / "s.npz")
    assert [len(group.images) for group in layout.groups] == [each] * shown and len(images) == shown * each
    assert (layout.groups[0].name, layout.groups[-1].name) == ("0", str(classes - 1))


def test_samples_without_classes_are_shown_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1))
    images, layout = images_of(tmp_path / "s.npy")
    assert images.ravel().tolist() == list(range(9)) and layout.left == 0 and layout.columns == 3


def test_a_dataset_of_latents_is_refused_and_so_is_what_holds_no_images(tmp_path: Path, trained: Path) -> None:
    attributes = {"format": "elbo-dataset", "version": 1}
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file.attrs.update(attributes)
        file["latents"], file["labels"] = np.zeros((2, 8, 4, 4), np.float16), np.zeros(2, np.int64)
    with pytest.raises(FormatError, match=r"holds latents.*name the dataset of the images themselves"):
        images_of(tmp_path / "l.h5")
    with pytest.raises(DataError, match=r"a run, not images; .elbo sample"):
        images_of(trained)


def test_the_picture_goes_to_a_pipe_but_never_onto_a_terminal(
    elbo: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    result = elbo("info", digits, "--grid", "-")
    assert result.returncode == 0
    assert elbo("info", digits, "--grid", "g.png", cwd=tmp_path).returncode == 0
    assert result.stdout == (tmp_path / "g.png").read_bytes()
    with Image.open(io.BytesIO(result.stdout)) as picture:
        assert picture.format == "PNG"
    parent, child = pty.openpty()
    line = [sys.executable, "-m", "elbocli", "info", str(digits), "--grid", "-"]
    ended = subprocess.run(line, stdout=child, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(child)
    os.close(parent)
    assert ended.returncode == 2 and b"standard output is a terminal" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "g.jpg"], "g.jpg: name a file that ends in .png"),
        (["--grid", "taken.png"], "taken.png: already exists"),
        (["--scale", "2"], "--scale enlarges a grid; add --grid FILE.png"),
        (["--grid", "-", "--json"], "standard output is the picture's"),
        (["--grid", "-", "--verify"], "standard output is the picture's"),
        (["--grid", "g.png", "--scale", "0"], "expected int >= 1"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    words: list[str], said: str, elbo: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken.png").write_text("mine")
    result = elbo("info", digits, *words, cwd=tmp_path)
    assert result.returncode == 2 and said in result.stderr.decode(), result.stderr
    assert (tmp_path / "taken.png").read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == [
        "taken.png"
    ]
    assert words != ["--grid", "taken.png"] or elbo("info", digits, *words, "--overwrite", cwd=tmp_path).returncode == 0
