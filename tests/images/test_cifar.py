"""CIFAR's files: as folder, archive and file they give the same images; damaged ones and pickles are refused in words."""

import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packing import messages, open_source, pack
from published_sets import (
    NAMES10,
    NAMES100,
    binary_batch,
    cifar10,
    cifar100,
    labels_of,
    noise,
)

from elbocli.errors import FormatError
from elbocli.files.dataset import Dataset


def packed(source: Path, out: Path) -> Dataset:
    pack(source, out)
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
        assert data.contents()[1]["files"][3:5] == ["data_batch_2/0", "data_batch_2/1"]
    digests = {Dataset(tmp_path / f"{number}.h5").attributes.source_sha256 for number in range(len(sources))}
    assert len(digests) == 1


def test_cifar_100_has_its_fine_classes(tmp_path: Path) -> None:
    images = cifar100(tmp_path / "cifar-100")
    found = open_source(tmp_path / "cifar-100")
    assert np.array_equal([ref.read() for ref in found.refs], images)
    assert found.class_names == NAMES100 and found.labels == labels_of(5, 100)


def test_the_training_images_are_taken(tmp_path: Path) -> None:
    cifar10(tmp_path / "cifar")
    with messages() as said:
        source = open_source(tmp_path / "cifar")
    assert len(source) == 6 and any("left out: test_batch.bin" in text for text in said)
    assert len(open_source(tmp_path / "cifar" / "test_batch.bin")) > 0


@pytest.mark.parametrize("names", [b"ant bee", b"ant " * 10, b"\xff"])
def test_names_that_are_not_those_of_the_classes_are_refused(tmp_path: Path, names: bytes) -> None:
    cifar10(tmp_path / "cifar")
    (tmp_path / "cifar" / "batches.meta.txt").write_bytes(names)
    with pytest.raises(FormatError, match=r"batches\.meta\.txt"):
        open_source(tmp_path / "cifar")
    (tmp_path / "cifar" / "batches.meta.txt").unlink()
    assert open_source(tmp_path / "cifar").class_names == [str(number) for number in range(10)]


def test_batches_of_both_kinds_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(binary_batch(noise(2, 0, (32, 32, 3))))
    assert len(open_source(tmp_path / "data_batch_1.bin")) == 2
    (tmp_path / "data_batch_2.bin").write_bytes(bytes(3074))
    (tmp_path / "test.bin").write_bytes(b"text")
    for name in ("", "test.bin"):
        with pytest.raises(FormatError):
            open_source(tmp_path / name)
