"""What is held out: disjoint from what is trained on, the same every time, and of the same kind."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.run.train_settings import TrainSettings
from elbocli.train.batches import split_rows, training_rows
from elbocli.train.recorder import open_held_out


class Rows:
    """As much of a dataset as a split asks for."""

    def __init__(self, count: int, together: int):
        self.count, self.latent_space = count, SimpleNamespace(mirrored=together == 2)

    def __len__(self) -> int:
        return self.count


def held_out(seed: int, count: int, n: int, together: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out)."""
    return split_rows(TrainSettings(seed=seed, val_split=n), Rows(count, together))  # type: ignore[arg-type]


@hypothesis_settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(3, 300), st.data(), st.sampled_from([1, 2]))
def test_every_row_is_on_one_side_and_pairs_stay_together(seed: int, groups: int, data: Any, together: int) -> None:
    count, n = groups * together, data.draw(st.integers(2, groups - 1)) * together
    train, out = held_out(seed, count, n, together)
    assert len(out) == n and sorted([*train, *out]) == list(range(count))
    assert (np.diff(train) > 0).all() and (np.diff(out) > 0).all()
    assert set(out // together) & set(train // together) == set()
    again = held_out(seed, count, n, together)
    assert all(np.array_equal(a, b) for a, b in zip((train, out), again, strict=True))


def test_another_seed_holds_out_others_all_alike_often() -> None:
    times = np.zeros(40, int)
    for seed in range(400):
        times[held_out(seed, 40, 10)[1]] += 1
    assert times.min() > 60 and times.max() < 140  # 100 ± 9 each


@pytest.mark.parametrize(
    ("count", "n", "together", "said"),
    [(10, 10, 1, "fewer than the dataset's 10"), (10, 1, 1, "at least 2"), (10, 3, 2, "mirror image")],
)
def test_a_split_that_leaves_nothing_or_parts_pairs_is_refused(count: int, n: int, together: int, said: str) -> None:
    with pytest.raises(UsageError, match=f"--val-split {n}: .*{said}"):
        held_out(0, count, n, together)


def test_training_and_validation_take_the_two_sides_of_one_split(digits: Path) -> None:
    data, settings = Dataset(digits), TrainSettings(val_split=60, seed=5)
    held, rows = open_held_out(settings, data, True), training_rows(settings, data)
    assert held is not None and rows is not None and held[0] is data
    assert sorted([*held[1], *rows]) == list(range(300))
    assert training_rows(TrainSettings(), data) is None and open_held_out(TrainSettings(), data, True) is None
    fewer = open_held_out(TrainSettings(val_split=60, seed=5, val_images=20), data, True)
    assert fewer is not None and len(set(fewer[1])) == 20 and set(fewer[1]) <= set(held[1])


def test_an_image_is_not_trained_on_while_its_mirror_image_is_held_out(
    autoencoder: Path, pack_latents: Callable[..., Path]
) -> None:
    data = Dataset(pack_latents(autoencoder, mirror=True), latents=True)
    held = open_held_out(TrainSettings(val_split=10), data, True)
    assert held is not None and set(held[1][::2] % 2) == {0} and (np.diff(held[1])[::2] == 1).all()
    with pytest.raises(UsageError, match="mirror image"):
        training_rows(TrainSettings(val_split=11), data)


@pytest.fixture
def changed(elbo: Callable[..., Any], digits: Path, digits_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Another dataset of digits: packed otherwise, or with class names changed."""

    def make(*options: Any, names: list[str] | None = None, limit: int = 50) -> Path:
        path = tmp_path / "other.h5"
        options = options or ("--size", 8, "--channels", 1)
        result = elbo("prep", digits_folder, path, "--limit", limit, *options)
        assert result.returncode == 0, result.stderr
        if names:
            with h5py.File(path, "r+") as file:
                del file["class_names"]
                file["class_names"] = names
        return path

    return make


def test_a_dataset_packed_likewise_is_taken(changed: Callable[..., Path], digits: Path) -> None:
    held = open_held_out(TrainSettings(val=str(changed())), Dataset(digits), True)
    assert held is not None and np.array_equal(held[1], np.arange(50))


@pytest.mark.parametrize(
    ("options", "names", "said"),
    [
        (("--size", 16, "--channels", 1), None, "other image_size"),
        (("--size", 8, "--channels", 3), None, "other channels"),
        ((), [*"012345678", "neun"], "other class_names"),
        ((), [*"0123456789a"], "other .*class"),
    ],
)
def test_another_kind_of_dataset_is_refused_with_the_difference(
    options: tuple[Any, ...], names: list[str] | None, said: str, changed: Callable[..., Path], digits: Path
) -> None:
    settings = TrainSettings(val=str(changed(*options, names=names)))
    with pytest.raises(UsageError, match=rf"--val \S+other\.h5: {said}"):
        open_held_out(settings, Dataset(digits), True)
    if names:
        assert open_held_out(settings, Dataset(digits), False) is not None  # nobody is told the class


def test_the_training_images_and_latents_of_others_are_refused(
    digits: Path, latents: Path, make_autoencoder: Callable[..., Path], pack_latents: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match=r"the very images to train on.*--val-split"):
        open_held_out(TrainSettings(val=str(digits)), Dataset(digits), True)
    with pytest.raises(UsageError, match=r"other image_size|latents"):
        open_held_out(TrainSettings(val=str(latents)), Dataset(digits), True)
    other = pack_latents(make_autoencoder(seed=1))
    with pytest.raises(UsageError, match="autoencoder_sha256"):
        open_held_out(TrainSettings(val=str(other)), Dataset(latents, latents=True), True)


def test_one_image_is_too_few(changed: Callable[..., Path], digits: Path) -> None:
    with pytest.raises(UsageError, match="1 image to validate on"):
        open_held_out(TrainSettings(val=str(changed()), val_images=1), Dataset(digits), True)
