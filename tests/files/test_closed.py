"""Files are closed when what opened them returns or raises, and not when the garbage collector comes."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from elbocli.errors import ElboError
from elbocli.files.dataset import Dataset, find_dataset
from elbocli.images.samples import read_samples
from elbocli.info.describe import verify
from elbocli.merge.combine import open_part


def verified(path: Path) -> None:
    verify(path)


def drawn(path: Path) -> None:
    with read_samples(path) as reader:
        reader.at(0, 2)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=["plain", "damaged", "of no version"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A dataset; the last two can't be read."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.zeros((6, 4, 4, 3), np.uint8))
        file["labels"] = np.arange(6) - (request.param == "damaged")
        file.attrs.update({"format": "elbo-dataset", "version": 7 if request.param == "of no version" else 1})
    return path


@pytest.mark.parametrize(
    "use",
    [Dataset, lambda path: find_dataset(path.parent), verified, open_part, drawn],
    ids=["Dataset", "find_dataset", "verify", "open_part", "read_samples"],
)
def test_a_dataset_that_was_read_can_be_opened_to_write(path: Path, use: Callable[[Path], object]) -> None:
    """HDF5 refuses it while the same process still has it open, as a traceback or a cycle may."""
    kept: list[object] = []
    try:
        kept.append(use(path))
    except ElboError as error:
        kept.append(error)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "another"
    assert len(kept) == 1
