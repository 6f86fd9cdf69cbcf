"""Packing: what goes in comes out, in order, whatever happens on the way."""

from pathlib import Path

import numpy as np
import packing
import pytest
from made_data import rows_sha256
from PIL import Image

from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.images.decode import CROPS
from elbocli.prep import pack as prep


def pack(src: Path, out: Path, **settings: object) -> list[str]:
    return packing.pack(src, out, **{"size": 8, "channels": 1, **settings})


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
    with pytest.raises(DataError, match=r"0000-text\.png: .*not an image"):
        pack(src, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    for name in ("a.h5", "b.h5"):  # the first goes on with what is done
        assert any("1 files skipped" in text for text in pack(src, tmp_path / name, on_error="skip"))
    assert len(Dataset(tmp_path / "b.h5")) == 4
    assert "0000-text.png" in (tmp_path / "b.skipped.jsonl").read_text()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match="no files inside"):
        pack(tmp_path / "src", tmp_path / "a.h5")
    with pytest.raises(DataError):
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
    with pytest.raises(UsageError, match="unfinished"):
        pack(digits_folder, tmp_path / "a.h5")


@pytest.mark.parametrize("crop", CROPS)
def test_rows_of_arrays_copied_in_blocks_are_those_packed_one_by_one(
    crop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources are an array, a dataset, and two arrays whose border lies within a block; in their order and shuffled."""
    rows = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[::-1])
    pack(tmp_path / "a.npy", tmp_path / "a.h5", channels=3)
    for sources, seed in ((["a.npy"], None), (["a.h5"], None), (["a.npy", "b.npy"], None), (["a.npy"], 3)):
        made = []
        for rows_at_once in (1, 7):
            monkeypatch.setattr(prep, "AT_ONCE", rows_at_once)
            out = tmp_path / f"{len(made)}.h5"
            many = [tmp_path / name for name in sources]
            packing.pack(many, out, size=8, crop=crop, channels=3, shuffle_seed=seed, overwrite=True)
            made.append(out.read_bytes())
        assert made[0] == made[1]
