"""Packing: what goes in comes out, in order, whatever happens on the way."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.hashing import rows_sha256
from elbocli.images.crops import CROPS
from elbocli.prep import decode_ahead
from elbocli.prep import pack as prep


def pack(src: Path, out: Path, **settings: object) -> list[str]:
    return [r.message for r in prep.run(src, out, prep.Settings(**{"size": 8, "channels": 1, **settings})) if r.message]  # type: ignore[arg-type]


def test_images_labels_and_names_are_those_of_the_folders(digits_folder: Path, tmp_path: Path) -> None:
    pack(digits_folder, tmp_path / "a.h5")
    data = Dataset(tmp_path / "a.h5")
    files = sorted(digits_folder.rglob("*.png"))
    assert len(data) == len(files) == 300
    assert data.class_names == [str(digit) for digit in range(10)]
    assert data.labels.tolist() == [int(path.parent.name) for path in files]
    expected = np.stack([np.asarray(Image.open(path)) for path in files])[..., None]
    assert np.array_equal(data.batch(np.arange(300)), expected)
    assert rows_sha256(data.pieces()) == data.attributes.payload_sha256


def test_a_bad_file_stops_or_is_skipped_and_listed(digits_folder: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    for path in sorted((digits_folder / "1").iterdir())[:4]:
        (src / path.name).write_bytes(path.read_bytes())
    (src / "0000-text.png").write_text("not an image")
    with pytest.raises(DataError, match=r"0000-text\.png: not an image"):
        pack(src, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    messages = pack(src, tmp_path / "a.h5", on_error="skip")  # goes on with what is done
    assert "1 files skipped" in messages[1]
    messages = pack(src, tmp_path / "b.h5", on_error="skip")
    assert "1 files skipped" in messages[1]
    assert len(Dataset(tmp_path / "b.h5")) == 4
    assert "0000-text.png" in (tmp_path / "b.skipped.jsonl").read_text()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match="no files inside"):
        pack(tmp_path / "src", tmp_path / "a.h5")
    with pytest.raises(DataError, match="no such folder"):
        pack(tmp_path / "nowhere", tmp_path / "a.h5")
    (tmp_path / "src" / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of its 1 files"):
        pack(tmp_path / "src", tmp_path / "a.h5", on_error="skip")


def test_an_output_is_replaced_only_when_asked(digits_folder: Path, tmp_path: Path) -> None:
    pack(digits_folder, tmp_path / "a.h5", limit=4)
    with pytest.raises(UsageError, match="already exists"):
        pack(digits_folder, tmp_path / "a.h5")
    pack(digits_folder, tmp_path / "a.h5", overwrite=True)
    assert len(Dataset(tmp_path / "a.h5")) == 300


def test_unfinished_work_of_another_source_is_not_mixed_in(digits_folder: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.png").write_bytes(next((digits_folder / "1").iterdir()).read_bytes())
    (src / "b.png").write_text("bad")
    with pytest.raises(DataError):
        pack(src, tmp_path / "a.h5")
    assert (tmp_path / "a.h5.partial").exists()
    with pytest.raises(DataError, match="unfinished prep of another source"):
        pack(digits_folder, tmp_path / "a.h5")


def test_a_file_finished_while_the_source_was_read_is_not_replaced(digits_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    with pytest.raises(UsageError, match="already exists"):
        for _ in prep.run(digits_folder, out, prep.Settings(size=8)):
            out.write_text("another's")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another's"]


@pytest.mark.parametrize("crop", CROPS)
def test_rows_of_arrays_copied_in_blocks_are_those_packed_one_by_one(
    crop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources are an array, a dataset, and two arrays whose border lies within a block; in their order and shuffled."""
    rows = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[::-1])
    pack(tmp_path / "a.npy", tmp_path / "a.h5", channels=3)
    calls: list[int] = []
    monkeypatch.setattr(decode_ahead, "_pack_rows", seen(decode_ahead._pack_rows, calls))
    for sources, seed in ((["a.npy"], None), (["a.h5"], None), (["a.npy", "b.npy"], None), (["a.npy"], 3)):
        made = []
        for rows_at_once in (1, 7):
            monkeypatch.setattr(decode_ahead, "STRETCH", rows_at_once * rows[0].nbytes)
            out = tmp_path / f"{len(made)}.h5"
            how = prep.Settings(8, crop, 3, shuffle_seed=seed, overwrite=True)
            list(prep.run([tmp_path / name for name in sources], out, how))
            made.append(out.read_bytes())
        assert made[0] == made[1]
    assert max(calls) == 7 and sum(calls) == 50 * 5


def test_a_damaged_array_is_read_again_for_the_first_of_its_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading may unpack a bomb."""
    np.save(tmp_path / "a.npy", np.zeros((50, 8, 8, 3), np.uint8))
    pack(tmp_path / "a.npy", tmp_path / "a.h5", channels=3)
    tried: list[Any] = []

    def damaged(self: Dataset, indices: Any) -> np.ndarray:
        tried.append(indices)
        raise DataError("damaged")

    monkeypatch.setattr(Dataset, "batch", damaged)
    with pytest.raises(DataError, match="0: damaged"):
        list(prep.run(tmp_path / "a.h5", tmp_path / "b.h5", prep.Settings(8, channels=3)))
    assert [len(indices) for indices in tried] == [50, 1]


def seen(function: Callable[..., list[Any]], calls: list[int]) -> Callable[..., list[Any]]:
    """A function that notes how many images it packs."""

    def noting(refs: Sequence[Any], how: Any) -> list[Any]:
        calls.append(len(refs))
        return function(refs, how)

    return noting
