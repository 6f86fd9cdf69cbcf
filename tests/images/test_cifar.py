"""CIFAR's files: as folder, archive and file they give the same images; damaged ones and pickles are refused in words."""

import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from published_sets import (
    NAMES10,
    NAMES100,
    binary_batch,
    cifar10,
    cifar100,
    labels_of,
    noise,
)

from elbocli.errors import DataError, FormatError
from elbocli.files.dataset import Dataset
from elbocli.images.sources import open_source
from elbocli.prep import pack


def packed(source: Path, out: Path) -> Dataset:
    list(pack.run(source, out, pack.Settings()))
    return Dataset(out)


def test_every_form_of_cifar_10_is_the_same_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    images = cifar10(folder)
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", tmp_path, folder.name], check=True)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"{folder.name}/{path.name}")
    sources = [folder, tmp_path / "x.tar", tmp_path / "x.zip"]
    for number, source in enumerate(sources):
        data = packed(source, tmp_path / f"{number}.h5")
        assert data.shape == (6, 32, 32, 3) and np.array_equal(data.batch(np.arange(6)), images)
        assert data.labels.tolist() == labels_of(3) * 2 and data.class_names == NAMES10
        assert data.strings("files")[3:5] == ["data_batch_2/0", "data_batch_2/1"]
    digests = {Dataset(tmp_path / f"{number}.h5").attributes.source_sha256 for number in range(len(sources))}
    assert len(digests) == 1


def test_cifar_100_has_its_fine_classes(tmp_path: Path) -> None:
    images = cifar100(tmp_path / "cifar-100")
    found = open_source(tmp_path / "cifar-100")
    assert np.array_equal([ref.read() for ref in found.refs], images)
    assert found.class_names == NAMES100 and found.labels == labels_of(5, 100)


def test_the_training_images_are_taken_and_the_advice_leads_to_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    cifar10(folder)
    (note,) = open_source(folder).notes
    assert note.startswith(f"the training images are taken: {folder}/data_batch_1") and "and 1 more" in note
    other = note.rpartition("elbo prep ")[2].removesuffix(" OTHER.h5")
    source = open_source(Path(other))
    assert np.array_equal([ref.read() for ref in source.refs], noise(3, 99))
    assert source.class_names == NAMES10 and source.notes == []


def test_a_tenth_batch_comes_after_the_ninth(tmp_path: Path) -> None:
    cifar10(tmp_path / "cifar", batches=11, count=1)
    names = open_source(tmp_path / "cifar").files
    assert names == [f"data_batch_{number}/0" for number in range(1, 12)]


def test_a_binary_batch_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "some file").write_bytes(binary_batch(noise(3)))
    source = open_source(tmp_path / "some file")
    assert source.class_names == [str(number) for number in range(10)] and source.labels == labels_of(3)
    content = bytearray(binary_batch(noise(3)))
    content[3073] = 10
    (tmp_path / "some file").write_bytes(content)
    with pytest.raises(DataError, match="some file: is a file, but none of"):
        open_source(tmp_path / "some file")


@pytest.mark.parametrize("names", [b"ant\nbee\n", b"ant\n" * 10, b"\x80\2x"])
def test_names_that_are_not_those_of_the_classes_are_refused(tmp_path: Path, names: bytes) -> None:
    cifar10(tmp_path / "cifar")
    (tmp_path / "cifar/batches.meta.txt").write_bytes(names)
    with pytest.raises(FormatError, match=r"batches\.meta\.txt: \d+ names of classes, expected 10; .* remove it"):
        open_source(tmp_path / "cifar")
    (tmp_path / "cifar/batches.meta.txt").unlink()
    assert open_source(tmp_path / "cifar").class_names == [str(number) for number in range(10)]


def test_batches_of_both_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(binary_batch(noise(2)))
    (tmp_path / "data_batch_2").write_bytes(binary_batch(noise(2), 100))
    with pytest.raises(FormatError, match="batches of CIFAR-10 and of CIFAR-100; name those of one kind"):
        open_source(tmp_path)
    assert len(open_source([tmp_path / "data_batch_1"])) == 2


def test_images_named_like_batches_stay_images(tmp_path: Path) -> None:
    """Folders called train and test hold classes, not batches."""
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    assert open_source(tmp_path).class_names == ["test", "train"]


def test_the_python_version_is_refused_and_not_run(tmp_path: Path, bomb) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"label_names": bomb, "data": bomb}, 2))
    with pytest.raises(DataError, match=r"data_batch_1: .*a pickle, which is never opened.*CIFAR's binary version"):
        open_source(tmp_path / "data_batch_1")
    with pytest.raises(DataError, match=r"data_batch_1: .*a pickle, which could run code"):
        list(pack.run(tmp_path, tmp_path / "x.h5", pack.Settings()))
    assert not bomb.went_off
