"""MNIST's files: pixels and labels as written, the training images of a folder, and damaged files refused in words."""

import gzip
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from packing import messages, open_source, pack
from published_sets import idx, labels_of, mnist, noise

from elbocli.errors import DataError, ElboError
from elbocli.files.dataset import Dataset
from elbocli.images.sources import choose


def packed(source: Path, out: Path, **settings: object) -> tuple[Dataset, list[str]]:
    said = pack(source, out, **settings)
    return Dataset(out), said


@pytest.mark.parametrize("gzipped", [True, False])
def test_a_folder_of_mnists_files_becomes_its_training_images(tmp_path: Path, gzipped: bool) -> None:
    images = mnist(tmp_path / "in", packed=gzipped)
    test = mnist(tmp_path / "in", "t10k", packed=gzipped, count=5, seed=1)
    data, said = packed(tmp_path / "in", tmp_path / "a.h5")
    assert data.shape == (12, 28, 28, 1) and np.array_equal(data.batch(np.arange(12)), images)
    assert data.labels.tolist() == labels_of(12) and data.class_names == [str(digit) for digit in range(10)]
    (note,) = [line for line in said if "the training images are taken" in line]
    data, said = packed(tmp_path / "in" / note.rpartition("left out: ")[2], tmp_path / "b.h5")
    assert np.array_equal(data.batch(np.arange(5)), test) and not any("taken" in line for line in said)


def test_one_file_its_folder_and_either_compression_are_the_same_dataset(tmp_path: Path) -> None:
    mnist(tmp_path / "plain", packed=False)
    mnist(tmp_path / "gz")
    sources = [tmp_path / "plain", tmp_path / "gz"]
    sources += [next(folder.glob("train-images*")) for folder in tuple(sources)]
    for number, source in enumerate(sources):
        packed(source, tmp_path / f"{number}.h5")
    for digest in ("payload_sha256", "source_sha256"):
        assert len({getattr(Dataset(tmp_path / f"{number}.h5").attributes, digest) for number in range(4)}) == 1


def test_a_name_says_nothing_where_the_content_says_it(tmp_path: Path) -> None:
    images = mnist(tmp_path, packed=False)
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "digits")
    source = open_source(tmp_path / "digits")
    assert np.array_equal(source.refs[3].read(), images[3]) and source.class_names == ["digits"]


def test_images_without_their_labels_are_one_class_with_a_note_that_helps(tmp_path: Path) -> None:
    mnist(tmp_path / "in")
    labels = tmp_path / "in/train-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    labels.unlink()
    with messages() as said:
        source = open_source(tmp_path / "in")
    assert len(source.class_names) == 1 and "train-labels-idx1-ubyte" in said[0]
    labels.write_bytes(content)
    assert open_source(tmp_path / "in").labels == labels_of(12)


def test_after_gunzip_the_unpacked_file_is_taken_once(tmp_path: Path) -> None:
    images = mnist(tmp_path / "in")
    subprocess.run(["gzip", "-dk", tmp_path / "in/train-images-idx3-ubyte.gz"], check=True)
    source = open_source(tmp_path / "in")
    assert np.array_equal(source.refs[11].read(), images[11])
    assert source.labels == labels_of(12)


def test_several_sets_are_told_apart_by_the_user(tmp_path: Path) -> None:
    for name in ("letters-train", "digits-train"):
        mnist(tmp_path / "in", name)
    with pytest.raises(DataError, match="several sets"):
        open_source(tmp_path / "in")
    assert len(open_source(tmp_path / "in/letters-train-images-idx3-ubyte.gz")) == 12


def test_rows_can_be_read_in_any_order(tmp_path: Path) -> None:
    images = mnist(tmp_path / "in")
    source = choose(open_source(tmp_path / "in"), shuffle_seed=3)
    order = [int(name) for name in source.files]
    assert order != sorted(order)
    assert np.array_equal([ref.read() for ref in source.refs], images[order])


PLAIN = idx(noise(4, 0, (8, 8)))


@pytest.mark.parametrize(
    "content",
    [
        PLAIN[:-1],
        PLAIN + b"x",
        b"\0\0\10\3" + struct.pack(">3I", 0, 8, 8),
        b"\0\0\10\3" + struct.pack(">3I", 4, 2**31, 2**31),
        b"\0\0\10\3" + struct.pack(">2I", 4, 8),
    ],
)
@pytest.mark.parametrize("gzipped", [True, False])
def test_damaged_files_are_refused_and_named(tmp_path: Path, content: bytes, gzipped: bool) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(content) if gzipped else content)
    with pytest.raises(ElboError, match=path.name):
        open_source(path)


@pytest.mark.parametrize(
    "labels", [idx(np.zeros(3, np.uint8)), idx(np.zeros(4, np.uint8))[:-1], PLAIN, b"text"], ids=range(4)
)
def test_labels_that_do_not_belong_are_refused(tmp_path: Path, labels: bytes) -> None:
    (tmp_path / "x-images-idx3-ubyte").write_bytes(PLAIN)
    (tmp_path / "x-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ElboError, match="labels-idx1-ubyte"):
        open_source(tmp_path / "x-images-idx3-ubyte")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_one_set_in_an_archive_is_read_where_it_lies(tmp_path: Path, kind: str) -> None:
    images = mnist(tmp_path / "in", packed=kind == "zip")
    source = open_source(Path(shutil.make_archive(str(tmp_path / "x"), kind, tmp_path / "in")))
    assert np.array_equal([ref.read() for ref in source.refs], images) and source.labels == labels_of(12)
