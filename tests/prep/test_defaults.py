"""The size and the channels that `elbo prep` chooses, what it says of them, and that nothing else depends on them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packing import open_source, pack
from PIL import Image

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.merge.combine import merge_datasets
from elbocli.prep import pack as prep

Sizes = list[tuple[int, int]]


def folder_of(path: Path, sizes: Sizes, mode: str = "RGB") -> Path:
    """A folder of noise images, width x height each."""
    path.mkdir()
    for index, size in enumerate(sizes):
        noise = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).convert(mode).save(path / f"{index:04d}.png")
    return path


def packed(source: Path, out: Path, **settings: Any) -> tuple[tuple[int, ...], list[str]]:
    """The shape of one image of the dataset, and what was said."""
    said = pack(source, out, **settings)
    return Dataset(out).shape[1:], said


@pytest.mark.parametrize(
    ("sizes", "settings", "size"),
    [
        ([(28, 28)] * 3, {}, 28),
        ([(64, 64)] * 3, {}, 64),
        ([(1, 1)] * 3, {}, 1),
        ([(65, 65)] * 3, {}, 64),
        ([(40, 30)] * 3, {}, 30),
        ([(40, 30)] * 3, {"crop": "pad"}, 40),
        ([(90, 60)] * 3, {"crop": "pad"}, 64),
        ([(28, 28), (28, 29)], {}, 64),
        ([(70, 70)] * 2, {"crop": "none"}, 70),
    ],
)
def test_images_that_are_alike_and_small_keep_their_size(
    tmp_path: Path, sizes: Sizes, settings: dict[str, Any], size: int
) -> None:
    shape, said = packed(folder_of(tmp_path / "in", sizes), tmp_path / "a.h5", **settings)
    assert shape == (size, size, 3)
    assert any(f"{size} x {size} pixels" in text for text in said)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_grey_stays_grey(tmp_path: Path, mode: str) -> None:
    shape, said = packed(folder_of(tmp_path / "in", [(8, 8)] * 3, mode), tmp_path / "a.h5")
    assert shape == (8, 8, 1)
    assert any("1 channels" in text for text in said)
    assert packed(tmp_path / "in", tmp_path / "b.h5", channels=3)[0] == (8, 8, 3)
    assert packed(tmp_path / "in", tmp_path / "c.h5", background="red")[0] == (8, 8, 3)
    assert packed(tmp_path / "in", tmp_path / "d.h5", background="black")[0] == (8, 8, 1)


def test_one_image_in_colour_makes_all_of_them_colour(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", [(8, 8)] * 3, "L")
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "one.png")
    shape, said = packed(tmp_path / "in", tmp_path / "a.h5")
    assert shape == (8, 8, 3) and any("3 channels" in line for line in said)


def test_options_given_are_followed_and_give_the_same_pixels_as_the_choice(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", [(12, 12)] * 4, "L")
    packed(tmp_path / "in", tmp_path / "chosen.h5")
    shape, _ = packed(tmp_path / "in", tmp_path / "given.h5", size=12, channels=1)
    assert shape == (12, 12, 1)
    digests = {Dataset(tmp_path / name).attributes.payload_sha256 for name in ("chosen.h5", "given.h5")}
    assert len(digests) == 1
    assert packed(tmp_path / "in", tmp_path / "other.h5", size=6, channels=3)[0] == (6, 6, 3)


def warnings(source: Path, out: Path, **settings: Any) -> list[str]:
    return pack(source, out, logging.WARNING, overwrite=True, **settings)


def test_enlarging_is_warned_of_once_and_its_advice_ends_it(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", [(90, 80), (70, 30), (20, 25), (80, 80)])
    (text,) = warnings(source, tmp_path / "a.h5")
    assert "enlarged to 64 x 64" in text and "--size 20" in text
    assert warnings(source, tmp_path / "a.h5", size=20) == []
    (text,) = warnings(source, tmp_path / "a.h5", size=28, crop="pad")
    assert "--size 25" in text
    assert warnings(source, tmp_path / "a.h5", size=25, crop="pad") == []


def test_all_shards_choose_alike_and_so_do_the_parts_of_a_subset(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", [(12, 12)] * 5 + [(20, 20)])
    parts = [tmp_path / f"{i}.h5" for i in (1, 2, 3)]
    assert {packed(source, part, shard=(i, 3))[0] for i, part in enumerate(parts, 1)} == {(64, 64, 3)}
    merge_datasets(parts, tmp_path / "whole.h5")
    assert len(Dataset(tmp_path / "whole.h5")) == 6
    for which in ("train", "val"):
        assert packed(source, tmp_path / f"{which}.h5", subset=(which, 0.2))[0] == (64, 64, 3)
    assert packed(source, tmp_path / "few.h5", limit=2)[0] == (64, 64, 3)


def test_the_same_command_goes_on_with_its_choice(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", [(12, 12)] * 6, "L")
    good = (source / "0003.png").read_bytes()
    (source / "0003.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"0003\.png: .*not an image"):
        packed(source, tmp_path / "a.h5")
    (source / "0003.png").write_bytes(good)
    shape, said = packed(source, tmp_path / "a.h5")
    assert shape == (12, 12, 1) and "going on after 3 images" in said


def test_a_thousand_files_at_most_are_looked_at_spread_over_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prep, "LOOKED_AT", 3)
    source = folder_of(tmp_path / "in", [(12, 12), (9, 9), (9, 9)] * 2)
    assert prep.look(open_source(source)) == {(12, 12, 3), (9, 9, 3)}  # of numbers 0, 2 and 4


def test_an_image_in_colour_that_was_not_looked_at_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep, "LOOKED_AT", 3)
    source = folder_of(tmp_path / "in", [(12, 12)] * 6, "L")
    Image.new("RGB", (12, 12)).save(source / "0001.png")
    said = warnings(source, tmp_path / "a.h5")
    assert said == ["changed while decoding: 1 colour made grey"] and Dataset(tmp_path / "a.h5").shape[-1] == 1
    assert warnings(source, tmp_path / "a.h5", channels=1) == [], "it is what was asked for"


def test_files_that_cannot_be_read_have_no_say(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", [(12, 12)] * 2)
    (source / "bad.png").write_bytes(b"bad")
    assert prep.look(open_source(source)) == {(12, 12, 3)}
    assert packed(source, tmp_path / "a.h5", on_error="skip")[0] == (12, 12, 3)


def test_all_rows_of_arrays_count_without_being_read(tmp_path: Path, images: Callable[..., np.ndarray]) -> None:
    np.savez_compressed(tmp_path / "x.npz", images(7))
    source = open_source(tmp_path / "x.npz")
    assert prep.look(source) == {images(7).shape[1:]}
    assert np.array_equal(source.refs[0].read(), images(7)[0]), "a source in order is still at its beginning"


def test_latents_are_of_colour_images(tmp_path: Path, autoencoder: Path) -> None:
    source = folder_of(tmp_path / "in", [(16, 16)] * 2, "L")
    pack(source, tmp_path / "a.h5", latents=autoencoder, device="cpu")
    assert Dataset(tmp_path / "a.h5", latents=True).attributes.image_size == 16
