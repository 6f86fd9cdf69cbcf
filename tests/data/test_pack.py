"""The images of any layout come out as one dataset, in order, of the size and channels that were asked for or chosen."""

import json
import logging
import random
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from calls import Stopped, open_source, pack, packed, stop_after
from odd_inputs import ODD, Odd, Outcome, open_folder, outcome, page
from PIL import Image

from elbocli.data import pack as prep
from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset


def identity(data: Dataset) -> dict[str, Any]:
    digests = {key: getattr(data.attributes, key) for key in ("payload_sha256", "source_sha256")}
    texts = {name: value for name, value in data.contents().items() if isinstance(value, list)}
    return {**digests, "labels": data.labels.tolist(), "classes": data.class_names, **texts}


def noise(path: Path, width: int, height: int, mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def folder_of(path: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Path:
    """A folder of noise images, width x height each."""
    for index, (width, height) in enumerate(sizes):
        noise(path / f"{index:04d}.png", width, height, mode, index)
    return path


def test_images_labels_and_names_are_those_of_the_folders(digits_folder, tmp_path):
    data = packed(digits_folder, tmp_path / "a.h5")
    files = sorted(digits_folder.rglob("*.png"))
    assert data.class_names == [str(digit) for digit in range(10)]
    assert data.labels.tolist() == [int(path.parent.name) for path in files]
    assert data.contents()["class_counts"].tolist() == np.bincount(data.labels).tolist()
    expected = np.stack([np.asarray(Image.open(path)) for path in files])[..., None]
    assert np.array_equal(data.read(np.arange(300)), expected)
    assert data.payload_digest() == data.attributes.payload_sha256


@pytest.mark.parametrize("repair", [True, False])
def test_a_bad_file_stops_and_the_same_command_goes_on_when_it_is_mended_or_skipped(repair, tmp_path):
    source = folder_of(tmp_path / "in", [(12, 12)] * 6, "L")
    out = tmp_path / "a.h5"
    bad = source / "0003.png"
    good = bad.read_bytes()
    bad.write_text("not an image")
    with pytest.raises(DataError, match=r"0003\.png: .*--on-error skip"):
        pack(source, out)
    assert not out.exists()
    if repair:
        bad.write_bytes(good)
    said = pack(source, out, on_error="stop" if repair else "skip")
    assert any(line.startswith("going on after 3 images") for line in said)
    whole = packed(source, tmp_path / "b.h5", on_error="skip")
    assert whole.shape == (5 + repair, 12, 12, 1) and out.read_bytes() == (tmp_path / "b.h5").read_bytes()
    if not repair:
        assert json.loads((tmp_path / "a.skipped.jsonl").read_text())["file"] == "0003.png"
        assert any("1 files skipped" in text for text in said)


def test_skipped_files_are_not_kept_by_a_prep_that_stops(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "in", [(8, 8)] * 6)
    out = tmp_path / "a.h5"
    (source / "0001.png").write_bytes(b"bad")
    monkeypatch.setattr(prep, "SAFE_EVERY_S", 0.0)
    with pytest.raises(Stopped):
        pack(source, out, at=stop_after(4), on_error="skip")
    with pytest.raises(DataError, match=r"0001\.png"):
        pack(source, out)
    for other in ({"crop": "edm"}, {"limit": 5}, {"size": 4}):
        with pytest.raises(UsageError):
            pack(source, out, **other)
    assert any("going on" in text for text in pack(source, out, on_error="skip"))
    (tmp_path / "bad").mkdir()
    shutil.copy(source / "0001.png", tmp_path / "bad")
    with pytest.raises(DataError, match="no usable image among 1"):
        pack(tmp_path / "bad", tmp_path / "b.h5", on_error="skip")


@pytest.mark.parametrize("form", ["png", "bmp", "npy"])
def test_a_killed_prep_goes_on_from_a_moved_source_but_never_from_another(form, tmp_path, monkeypatch):
    """Another version has equal names; as BMP or NPY, equal sizes too."""
    monkeypatch.setattr(prep, "SAFE_EVERY_S", 0.0)
    draw = np.random.default_rng(0)
    sources = [tmp_path / name / ("in.npy" if form == "npy" else "in") for name in "ab"]
    for source in sources:
        source.parent.mkdir()
        pixels = draw.integers(0, 256, (30, 8, 8, 3), np.uint8)
        if form == "npy":
            np.save(source, pixels)
            continue
        source.mkdir()
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(source / f"{index}.{form}")
    out = tmp_path / "out.h5"
    moved = tmp_path / "moved"
    with pytest.raises(Stopped):
        pack(sources[0], out, at=stop_after(9))
    with pytest.raises(UsageError):
        pack(sources[1], out)
    with pytest.raises(UsageError):
        pack(sources[0], out, crop="edm")
    moved.mkdir()
    moved = sources[0].rename(moved / sources[0].name)
    assert any("going on after" in line for line in pack(moved, out))
    assert out.read_bytes() == (packed(moved, tmp_path / "whole.h5") and tmp_path / "whole.h5").read_bytes()


def test_rows_of_arrays_copied_in_blocks_are_those_packed_one_by_one(tmp_path, monkeypatch, images):
    """The border between the arrays lies within a block."""
    rows = images(50)
    for name, part in (("a.npy", rows), ("b.npy", rows[::-1])):
        np.save(tmp_path / name, part)
    made = []
    for rows_at_once in (1, 7):
        monkeypatch.setattr(prep, "AT_ONCE", (rows_at_once - 1) * rows[0].size)
        data = packed([tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / f"{rows_at_once}.h5")
        made.append(identity(data))
    assert made[0] == made[1] and len(data) == 100
    assert np.array_equal(data.read(np.arange(100)), np.concatenate([rows, rows[::-1]]))


def test_a_dataset_that_differs_from_its_digests_is_no_source(tmp_path):
    folders = [folder_of(tmp_path / "in" / name, [(8, 8)] * 3) for name in "ab"]
    packed(folders[0].parent, tmp_path / "whole.h5")
    for name in ("images", "labels"):
        damaged = tmp_path / f"{name}.h5"
        shutil.copy(tmp_path / "whole.h5", damaged)
        with h5py.File(damaged, "r+") as file:
            file[name][(0,) * file[name].ndim] ^= 1
        with pytest.raises(DataError, match=rf"{name}\.h5: damaged"):
            pack(damaged, tmp_path / "out.h5")
    assert len(packed(tmp_path / "whole.h5", tmp_path / "out.h5")) == 6


# Layouts


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, one of them empty and first; a file further down, names with a space and beyond ASCII."""
    folder = tmp_path_factory.mktemp("tree") / "images"
    names = ["b/2.png", "b/10.png", "b/deep/er/1.png", "c d/é.png", "c d/x y.png", "é/1.png", "é/0.png"]
    for seed, name in enumerate(names):
        noise(folder / name, 9 + seed, 9, seed=seed)
    (folder / "a").mkdir()
    return folder


@pytest.fixture(scope="module")
def expected(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return identity(packed(tree, tmp_path_factory.mktemp("expected") / "out.h5"))


def tar_of(path: Path, top: Path, prefix: str = "") -> Path:
    """A tar of a folder's content in no particular order."""
    entries = sorted(top.rglob("*"))
    random.Random(0).shuffle(entries)
    with tarfile.open(path, "w") as tar:
        for entry in entries:
            tar.add(entry, f"{prefix}{entry.relative_to(top)}", recursive=False)
    return path


def command_tar(path: Path, *what: str | Path) -> Path:
    subprocess.run(["tar", "cf", path, "-C", *what], check=True)
    return path


def zip_of(path: Path, tree: Path, compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry in sorted(tree.rglob("*"), reverse=True):
            archive.write(entry, entry.relative_to(tree))
    return path


def class_tars(tree: Path, folder: Path) -> Path:
    folder.mkdir()
    for each in tree.iterdir():
        tar_of(folder / f"{each.name}.tar", each)
    return folder


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "tar cf x.tar folder": lambda tree, at: command_tar(at / "x.tar", tree.parent, tree.name),
    "tar cf x.tar -C folder .": lambda tree, at: command_tar(at / "x.tar", tree, "."),
    "tar, any order, below": lambda tree, at: tar_of(at / "x.tar", tree, "./some/where/"),
    "zip, stored": lambda tree, at: zip_of(at / "x.zip", tree, zipfile.ZIP_STORED),
    "zip, deflated": lambda tree, at: zip_of(at / "x.zip", tree, zipfile.ZIP_DEFLATED),
    "tar of class tars": lambda tree, at: tar_of(at / "x.tar", class_tars(tree, at / "parts")),
    "folder of class tars": lambda tree, at: class_tars(tree, at / "parts"),
    "folder of one folder": lambda tree, at: Path(shutil.copytree(tree, at / "one/two/images").parents[1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_is_the_same_source_as_its_folder_and_is_not_unpacked(form, tree, expected, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(prep, "SAFE_EVERY_S", 0.0)
    source = FORMS[form](tree, tmp_path)
    seen: set[str] = set()

    def look(done: int) -> None:
        seen.update(path.name for name in ("tmp", "out") for path in (tmp_path / name).iterdir())

    for workers in (1, 4):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=workers: range(n))
        pack(source, tmp_path / f"out/{workers}.h5", at=look)
        assert identity(Dataset(tmp_path / f"out/{workers}.h5")) == expected
    assert seen <= {f"{n}.h5{end}" for n in (1, 4) for end in ("", ".lock", ".partial", ".partial.json")}
    assert (tmp_path / "out/1.h5").read_bytes() == (tmp_path / "out/4.h5").read_bytes()


def test_class_tars_or_class_folders_one_by_one_are_the_whole(tree, expected, tmp_path):
    tars = class_tars(tree, tmp_path / "parts")
    without = {**expected, "labels": [label - 1 for label in expected["labels"]]}
    without["classes"] = without["class_names"] = ["b", "c d", "é"]
    for folder, end in ((tars, ".tar"), (tree, "")):
        sources = [folder / f"{name}{end}" for name in without["classes"]]
        assert identity(packed(sources, tmp_path / f"x{end}.h5")) == without
    files = ["b/10.png", "b/2.png", "b/deep/er/1.png", "c d/x y.png", "c d/é.png", "é/0.png", "é/1.png"]
    assert expected["classes"] == ["a", "b", "c d", "é"] and expected["files"] == files
    assert expected["labels"] == [1, 1, 1, 2, 2, 3, 3]


# Size and channels


@pytest.mark.parametrize(
    ("sizes", "settings", "size"),
    [
        ([(28, 28)] * 3, {}, 28),
        ([(64, 64)] * 3, {}, 64),
        ([(1, 1)] * 3, {}, 1),
        ([(65, 65)] * 3, {}, 64),
        ([(40, 30)] * 3, {}, 30),
        ([(28, 28), (28, 29)], {}, 64),
        ([(70, 70)] * 2, {"crop": "none"}, 70),
        ([(28, 28)] * 3, {"size": 6}, 6),
    ],
)
def test_images_that_are_alike_and_small_keep_their_size(tmp_path, sizes, settings, size):
    said = pack(folder_of(tmp_path / "in", sizes), tmp_path / "a.h5", **settings)
    assert Dataset(tmp_path / "a.h5").shape == (len(sizes), size, size, 3)
    assert any(f"{size} x {size} pixels, 3 channels" in text for text in said)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_grey_stays_grey_unless_another_image_is_in_colour(tmp_path, mode):
    source = folder_of(tmp_path / "in", [(8, 8)] * 3, mode)
    assert packed(source, tmp_path / "a.h5").shape == (3, 8, 8, 1)
    noise(source / "one.png", 8, 8)
    assert packed(source, tmp_path / "b.h5").shape == (4, 8, 8, 3)


def warnings(source: Path, out: Path, **settings: Any) -> list[str]:
    return pack(source, out, logging.WARNING, overwrite=True, **settings)


def test_enlarging_is_warned_of_once_and_its_advice_ends_it(tmp_path):
    source = folder_of(tmp_path / "in", [(90, 80), (70, 30), (20, 25), (80, 80)])
    for settings, size, advice in (({}, 64, 20), ({"size": 28, "crop": "edm"}, 28, 20)):
        (text,) = warnings(source, tmp_path / "a.h5", **settings)
        assert f"enlarged to {size} x {size}" in text and f"--size {advice}" in text
        assert warnings(source, tmp_path / "a.h5", **{**settings, "size": advice}) == []


def test_parts_of_a_subset_have_one_size(tmp_path):
    source = folder_of(tmp_path / "in", [(12, 12)] * 5 + [(20, 20)])
    chosen: list[dict[str, Any]] = [{"subset": ("val", 0.2)}, {"subset": ("train", 0.2)}, {"limit": 2}]
    assert {packed(source, tmp_path / f"{k}.h5", **each).shape[1:] for k, each in enumerate(chosen)} == {(64, 64, 3)}


def test_some_files_are_looked_at_spread_over_the_list_and_all_arrays(tmp_path, monkeypatch, images):
    monkeypatch.setattr(prep, "LOOKED_AT", 3)
    source = folder_of(tmp_path / "in", [(12, 12), (9, 9), (9, 9)] * 2)
    assert prep.look(open_source(source)) == {(12, 12, 3), (9, 9, 3)}  # of numbers 0, 2 and 4
    (source / "0000.png").write_bytes(b"bad")
    assert prep.look(open_source(source)) == {(9, 9, 3)}
    np.savez_compressed(tmp_path / "x.npz", images(7))
    assert prep.look(open_source(tmp_path / "x.npz")) == {(8, 8, 3)}
    source = folder_of(tmp_path / "grey", [(12, 12)] * 6, "L")
    noise(source / "0001.png", 12, 12)
    assert warnings(source, tmp_path / "a.h5") == ["decoding changed some images: 1 colour made grey"]
    assert warnings(source, tmp_path / "a.h5", channels=1) == [], "it is what was asked for"


PAGE = Path(__file__).parents[2] / "docs" / "odd-images.md"
FOUND: dict[str, Outcome] = {}


def found_for(odd: Odd) -> Outcome:
    if odd.name not in FOUND:
        with open_folder() as folder:
            FOUND[odd.name] = outcome(odd, folder)
            left = {path.name for path in folder.iterdir() if not path.name.startswith(("out.", "stop."))}
            assert left == {odd.name if odd.archive else "src"}, "something was unpacked"
    return FOUND[odd.name]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd.name))
def test_it_is_packed_or_refused_as_declared_and_listed(odd):
    found = found_for(odd)
    assert found.packed == odd.packed
    assert odd.pixels is None or np.array_equal(found.pixels, odd.pixels)
    assert found.packed or not found.says or odd.name in found.says
    listed = [json.loads(line) for line in found.skipped.splitlines()]
    assert any(f"{len(listed)} files skipped" in message for message in found.warned) == bool(listed)
    assert odd.archive or not listed or listed[0]["trouble"] in found.says


def test_the_page_in_the_docs_is_what_comes_out():
    assert PAGE.read_text() == page(found_for), "run make docs"
