"""One set of images in every layout: the same dataset comes out, and nothing is unpacked on the way."""

import io
import random
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import packing
import pytest
from PIL import Image

from elbocli.files.dataset import Dataset
from elbocli.prep import pack as prep

IDENTITY = ("payload_sha256", "source_sha256")


def pack(sources: list[Path] | Path, out: Path, **settings: Any) -> list[str]:
    return packing.pack(sources, out, **{"size": 8, **settings})


def identity(path: Path) -> dict[str, Any]:
    data = Dataset(path)
    return {
        **{key: getattr(data.attributes, key) for key in IDENTITY},
        "labels": data.labels.tolist(),
        "classes": data.class_names,
        "files": data.contents()[1]["files"],
    }


def picture(seed: int, width: int = 12, height: int = 9) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, one of them empty and first; a file further down, names with a space and beyond ASCII."""
    folder = tmp_path_factory.mktemp("tree") / "images"
    names = ["b/2.png", "b/10.png", "b/deep/er/1.png", "c d/é.png", "c d/x y.png", "é/1.png", "é/0.png"]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed, 9 + seed))
    (folder / "a").mkdir()
    return folder


def members(tree: Path) -> list[Path]:
    found = sorted(tree.rglob("*"))
    random.Random(0).shuffle(found)
    return found


def tar_of(path: Path, top: Path, entries: list[Path], prefix: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        for entry in entries:
            tar.add(entry, prefix + str(entry.relative_to(top)), recursive=False)
    return path


def zip_of(path: Path, tree: Path, compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry in members(tree):
            archive.write(entry, entry.relative_to(tree))
    return path


def class_tars(tree: Path, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    classes = sorted(path for path in tree.iterdir() if path.is_dir())
    return [
        tar_of(folder / f"{c.name}.tar", c, [entry for entry in members(tree) if c in entry.parents]) for c in classes
    ]


def tar_named(tree: Path, at: Path) -> Path:
    subprocess.run(["tar", "cf", at / "x.tar", "-C", tree.parent, tree.name], check=True)
    return at / "x.tar"


def tar_dot(tree: Path, at: Path) -> Path:
    subprocess.run(["tar", "cf", at / "x.tar", "-C", tree, "."], check=True)
    return at / "x.tar"


def tar_of_tars(tree: Path, at: Path) -> Path:
    tars = class_tars(tree, at / "parts")
    return tar_of(at / "x.tar", at / "parts", tars[::-1])


def folder_of_tars(tree: Path, at: Path) -> Path:
    class_tars(tree, at / "parts")
    return at / "parts"


def copy_below(tree: Path, at: Path) -> Path:
    shutil.copytree(tree, at / "one/two/images")
    return at / "one"


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "tar cf x.tar folder": tar_named,
    "tar cf x.tar -C folder .": tar_dot,
    "tar, any order": lambda tree, at: tar_of(at / "x.tar", tree, members(tree)),
    "tar, any order, below": lambda tree, at: tar_of(at / "x.tar", tree, members(tree), "./some/where/"),
    "zip, stored": lambda tree, at: zip_of(at / "x.zip", tree, zipfile.ZIP_STORED),
    "zip, deflated": lambda tree, at: zip_of(at / "x.zip", tree, zipfile.ZIP_DEFLATED),
    "tar of class tars": tar_of_tars,
    "folder of class tars": folder_of_tars,
    "folder of one folder": copy_below,
}


@pytest.fixture(scope="module")
def expected(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("expected") / "out.h5"
    pack(tree, out)
    return identity(out)


def test_the_folder_itself(tree: Path, expected: dict[str, Any]) -> None:
    assert expected["classes"] == ["a", "b", "c d", "é"]
    assert expected["labels"] == [1, 1, 1, 2, 2, 3, 3]
    assert expected["files"] == [
        "b/10.png",
        "b/2.png",
        "b/deep/er/1.png",
        "c d/x y.png",
        "c d/é.png",
        "é/0.png",
        "é/1.png",
    ]


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_is_the_same_source_as_its_folder(
    form: str, tree: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FORMS[form](tree, tmp_path)
    for workers in (1, 4):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=workers: range(n))
        pack(source, tmp_path / f"{workers}.h5")
        assert identity(tmp_path / f"{workers}.h5") == expected
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "4.h5").read_bytes()


def test_class_tars_or_class_folders_one_by_one_are_the_whole(
    tree: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    pack([path for path in class_tars(tree, tmp_path / "parts") if path.stem != "a"], tmp_path / "tars.h5")
    pack([path for path in sorted(tree.iterdir()) if path.name != "a"], tmp_path / "folders.h5")
    without = {**expected, "classes": expected["classes"][1:], "labels": [label - 1 for label in expected["labels"]]}
    assert identity(tmp_path / "tars.h5") == identity(tmp_path / "folders.h5") == without


def test_a_flat_folder_and_its_archives_are_the_same(tree: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", tree, "é"], check=True)
    subprocess.run(["tar", "cf", tmp_path / "é.tar", "-C", tree / "é", "."], check=True)
    shutil.copytree(tree / "é", tmp_path / "only/é")
    found = []
    for number, source in enumerate((tree / "é", tmp_path / "x.tar", tmp_path / "é.tar", tmp_path / "only")):
        pack(source, tmp_path / f"{number}.h5")
        found.append(identity(tmp_path / f"{number}.h5"))
    assert found[0]["classes"] == ["é"] and found[0]["files"] == ["0.png", "1.png"]
    assert found == [found[0]] * 4


CLASSES = 1000


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 class tars in a tar, two images each, laid out as ILSVRC2012_img_train.tar is."""
    path = tmp_path_factory.mktemp("ilsvrc") / "ILSVRC2012_img_train.tar"
    pictures = [picture(seed) for seed in range(50)]
    order = list(range(CLASSES))
    random.Random(1).shuffle(order)
    with tarfile.open(path, "w") as whole:
        for label in order:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for k in (1, 0):
                    info = tarfile.TarInfo(f"n{label:08d}_{k}.JPEG")
                    content = pictures[(label * 7 + k) % 50]
                    info.size = len(content)
                    part.addfile(info, io.BytesIO(content))
            info = tarfile.TarInfo(f"n{label:08d}.tar")
            info.size = len(inner.getvalue())
            whole.addfile(info, io.BytesIO(inner.getvalue()))
    return path


def test_ilsvrc_is_packed_without_unpacking(ilsvrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(prep, "SAFE_EVERY_S", 0.01)
    out, peak, seen = tmp_path / "out" / "train.h5", 0, set()
    out.parent.mkdir()

    def look(done: int) -> None:
        nonlocal peak, seen
        files = list(out.parent.iterdir())
        seen |= {file.name for file in files}
        peak = max(peak, sum(file.stat().st_blocks * 512 for file in files if file.exists()))
        assert not any((tmp_path / "tmp").iterdir())

    with packing.at_progress(look):
        pack(ilsvrc, out, size=16)
    assert seen <= {"train.h5" + end for end in ("", ".lock", ".partial", ".partial.json")}
    assert {path.name for path in ilsvrc.parent.iterdir()} == {ilsvrc.name}
    data = Dataset(out)
    assert 2 * CLASSES * 16 * 16 * 3 <= peak <= out.stat().st_size + 32_768
    assert data.class_names == [f"n{label:08d}" for label in range(CLASSES)]
    assert data.labels.tolist() == [label for label in range(CLASSES) for _ in range(2)]
    assert data.contents()[1]["files"][:3] == [
        "n00000000/n00000000_0.JPEG",
        "n00000000/n00000000_1.JPEG",
        "n00000001/n00000001_0.JPEG",
    ]
    for row, (label, k) in {0: (0, 0), 1: (0, 1), 1999: (999, 1)}.items():
        assert np.array_equal(data.batch(np.array([row]))[0], cropped(picture((label * 7 + k) % 50), 16))


def cropped(content: bytes, size: int) -> np.ndarray:
    """ADM's centre crop of an image less than twice as large, by its definition."""
    image = Image.open(io.BytesIO(content))
    scale = size / min(image.size)
    array = np.array(image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def test_shards_in_order_are_the_whole(ilsvrc: Path, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"limit": 301, "shuffle_seed": 3, "subset": ("train", 0.5)}
    pack(ilsvrc, tmp_path / "whole.h5", **chosen)
    whole = Dataset(tmp_path / "whole.h5")
    parts = []
    for index in (1, 2, 3, 4):
        pack(ilsvrc, tmp_path / f"{index}.h5", **chosen, shard=(index, 4))
        parts.append(Dataset(tmp_path / f"{index}.h5"))
    assert [part.attributes.shard for part in parts] == ["1/4", "2/4", "3/4", "4/4"]
    assert len({part.attributes.shard_of for part in parts}) == 1 and whole.attributes.shard is None
    assert np.array_equal(np.concatenate([next(part.batches(301)) for part in parts]), next(whole.batches(301)))
    assert np.concatenate([part.labels for part in parts]).tolist() == whole.labels.tolist()
    assert [name for part in parts for name in part.contents()[1]["files"]] == whole.contents()[1]["files"]
    total = sum(int(part.attributes.source_sha256, 16) for part in parts) % (1 << 256)
    assert f"{total:064x}" == whole.attributes.source_sha256
    pack(ilsvrc, tmp_path / "other.h5", **{**chosen, "shuffle_seed": 4}, shard=(1, 4))
    assert Dataset(tmp_path / "other.h5").attributes.shard_of != parts[0].attributes.shard_of


def test_a_source_twice_and_a_changed_file(tree: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    pack(tree, tmp_path / "again.h5")
    assert identity(tmp_path / "again.h5") == expected
    shutil.copytree(tree, tmp_path / "images")
    with Image.open(tmp_path / "images/é/1.png") as image:
        image.save(tmp_path / "images/é/1.png", compress_level=0)
    pack(tmp_path / "images", tmp_path / "changed.h5")
    changed = identity(tmp_path / "changed.h5")
    assert changed["payload_sha256"] == expected["payload_sha256"]
    assert changed["source_sha256"] != expected["source_sha256"]


@pytest.mark.parametrize("store", ["raw", "png", "webp"])
def test_plain_h5py_reads_it(tree: Path, tmp_path: Path, store: str) -> None:
    pack(tree, tmp_path / "x.h5", store=store)
    expected = next(Dataset(tmp_path / "x.h5").batches(100))
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert file.attrs["format"] == "elbo-dataset" and file.attrs["count"] == 7
        assert [name.decode() for name in file["class_names"][()]] == ["a", "b", "c d", "é"]
        assert file["labels"][()].tolist() == [1, 1, 1, 2, 2, 3, 3] and file["class_counts"][()].tolist() == [
            0,
            3,
            2,
            2,
        ]
        assert all(not file[name].is_virtual and not file[name].external for name in file)
        if store == "raw":
            images = file["images"][()]
        else:
            ends, content = file["offsets"][()], file["encoded"][()]
            parts = [content[start:stop].tobytes() for start, stop in pairwise(ends)]
            images = np.stack([np.asarray(Image.open(io.BytesIO(part))) for part in parts])
    assert np.array_equal(images, expected)
