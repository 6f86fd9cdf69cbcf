"""Parquet files of images, as Hugging Face's `datasets` writes them: their order, classes and parts; damage in words."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packing import open_source, pack
from published_sets import labels_of, noise, parquet, png

from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files.dataset import Dataset
from elbocli.images.sources import choose

NAMES = ["ant", "hot dog", "bee"]
LABELS = labels_of(11, 3)
ROWS = noise(11, 0, (8, 8, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two files for training (in row groups of 4) and one for testing."""
    parts = {
        "train-00000-of-00002": slice(0, 6),
        "train-00001-of-00002": slice(6, 10),
        "test-00000-of-00001": slice(10, 11),
    }
    for name, part in parts.items():
        parquet(tmp_path / f"set/data/{name}.parquet", list(map(png, ROWS[part])), LABELS[part], NAMES)
    (tmp_path / "set/README.md").write_text("A data set")
    return tmp_path / "set"


def packed(source: Path, out: Path, **settings: object) -> Dataset:
    pack(source, out, **settings)
    return Dataset(out)


def test_the_training_images_are_packed_with_the_names_of_their_classes(folder: Path, tmp_path: Path) -> None:
    data = packed(folder, tmp_path / "a.h5")
    assert data.shape == (10, 8, 8, 3) and np.array_equal(data.batch(np.arange(10)), ROWS[:10])
    assert data.labels.tolist() == LABELS[:10] and data.class_names == NAMES
    assert data.contents()[1]["files"][5:7] == ["train-00000-of-00002/5", "train-00001-of-00002/0"]


def test_any_part_of_the_rows_is_read_as_it_lies(folder: Path, tmp_path: Path) -> None:
    for shard in (1, 2, 3):
        data = packed(folder, tmp_path / f"{shard}.h5", shard=(shard, 3))
        numbers = [10 * (shard - 1) // 3, 10 * shard // 3]
        assert np.array_equal(next(data.batches(10)), ROWS[slice(*numbers)])
    shuffled = packed(folder, tmp_path / "shuffled.h5", shuffle_seed=0)
    order = choose(open_source(folder), shuffle_seed=0).files
    assert order != sorted(order) and shuffled.contents()[1]["files"] == order
    refs = open_source(folder).refs
    assert [refs[index].read() for index in (7, 2, 2, 3, 9, 0)] == [png(ROWS[index]) for index in (7, 2, 2, 3, 9, 0)]


def test_files_without_labels_or_names(tmp_path: Path) -> None:
    parquet(tmp_path / "cats.parquet", list(map(png, ROWS)), None)
    assert open_source(tmp_path / "cats.parquet").class_names == ["cats"]
    parquet(tmp_path / "x.parquet", list(map(png, ROWS)), LABELS)
    source = open_source(tmp_path / "x.parquet")
    assert source.labels == LABELS and source.class_names == ["0", "1", "2"]


def test_a_row_without_an_image_is_a_bad_image(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", [png(ROWS[0]), None, png(ROWS[2])], [0, 1, 2], NAMES)
    with pytest.raises(DataError, match="x/1: can't be read"):
        packed(tmp_path / "x.parquet", tmp_path / "a.h5")
    assert packed(tmp_path / "x.parquet", tmp_path / "a.h5", on_error="skip").contents()[1]["files"] == ["x/0", "x/2"]


def test_another_column_of_numbers_is_no_label(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    images = pa.array([{"bytes": png(row)} for row in ROWS[:2]], pa.struct([("bytes", pa.binary())]))
    write_table(pa.table({"width": [8, 8], "img": images}), tmp_path / "cats.parquet")
    assert open_source(tmp_path / "cats.parquet").class_names == ["cats"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not a usable parquet file"),
        (lambda path: path.write_bytes(path.read_bytes()[:12]), "not a usable parquet file"),
        (lambda path: parquet(path, [], [], NAMES), "no files inside"),
        (lambda path: parquet(path, [png(ROWS[0])], [3], NAMES), "label 3"),
        (lambda path: parquet(path, [png(ROWS[0])], [-1], NAMES), "label -1"),
    ],
)
def test_damaged_files_are_refused_and_named(tmp_path: Path, make, complaint: str) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, list(map(png, ROWS)), LABELS, NAMES)
    make(path)
    with pytest.raises((DataError, FormatError), match=rf"x\.parquet: .*{complaint}"):
        open_source(path)


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(FormatError, match="no column of images"):
        open_source(tmp_path / "x.parquet")


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for name, names in (("train-0", NAMES), ("train-1", ["x", "y", "z"])):
        parquet(tmp_path / f"a/{name}.parquet", list(map(png, ROWS)), LABELS, names)
    with pytest.raises(FormatError, match="other columns"):
        open_source(tmp_path / "a")
    for name in ("big", "small"):
        parquet(tmp_path / f"b/{name}/train-0.parquet", list(map(png, ROWS)), LABELS, NAMES)
    with pytest.raises(DataError, match="several sets"):
        open_source(tmp_path / "b")
    assert len(open_source(tmp_path / "b/big")) == 11


def test_damaged_pages_are_bad_images_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, list(map(png, ROWS)), LABELS, NAMES)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for place in random.integers(4, len(content), random.integers(1, 4)):
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            source = open_source(path)
        except ElboError as error:
            assert str(path) in str(error)
            continue
        for ref in source.refs:
            try:
                assert isinstance(ref.read(), bytes)
            except ElboError:
                continue


def test_without_pyarrow_the_message_says_what_to_install(folder: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from elbocli.main import main; sys.argv[0] = 'elbo'; main()"
    line = [sys.executable, "-c", code, "prep", str(folder), "x.h5"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 2 and "parquet files need pyarrow; pip install 'elbocli[parquet]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_parquet_in_an_archive_is_unpacked_as_said(folder: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", folder, "."], check=True)
    with pytest.raises(FormatError, match="unpack the archive"):
        open_source(tmp_path / "x.tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "x.tar", "-C", tmp_path / "out"], check=True)
    assert len(open_source(tmp_path / "out")) == 10
