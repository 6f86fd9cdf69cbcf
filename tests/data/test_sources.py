"""Folders, archives and several sources: their images in one order, their classes, and a choice of them."""

import os
import pickle
import subprocess
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from calls import open_source, touch
from harness import heard

from elbocli.data.kinds.trees import FOLDER, list_folder, list_tar, list_zip
from elbocli.data.sources import choose
from elbocli.errors import DataError, ElboError
from elbocli.files.dataset import Dataset

# Kinds of sources

PLUGIN = """
import numpy as np
import elbocli.plugin as elbo

@elbo.source("pairs", suffix=".pairs")
def pairs(path):
    count = path.stat().st_size // 64
    rows = np.memmap(path, np.uint8, "r", 2, (count, 8, 8, 1))
    for row in range(count):
        yield f"{row}", "even" if row % 2 == 0 else "odd", elbo.ArrayRow(rows, row)
"""


def test_a_plug_in_adds_a_kind_which_comes_before_elbos_own(elbo, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    (tmp_path / "x.pairs").write_bytes(b"PK" + pixels.tobytes())  # it begins like a zip
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert elbo("prep", "x.pairs", "a.h5", cwd=tmp_path).returncode == 1
    done = elbo("prep", "x.pairs", "a.h5", "--plugin", "mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = Dataset(tmp_path / "a.h5")
    assert np.array_equal(data.read(np.arange(3)), pixels)
    assert data.class_names == ["even", "odd"] and data.labels.tolist() == [0, 1, 0]


def test_a_folder_its_tar_and_its_zip_list_the_same_and_leave_hidden_files_out(tmp_path):
    tree = tmp_path / "tree"
    for name in ("a/1.png", "a/.2.png", "b c/é/2.png", ".git/x", "__MACOSX/a/._1.png", "a/Thumbs.db", "x.txt"):
        touch(tree, name).joinpath(name).write_bytes(name.encode())
    (tree / "empty").mkdir()
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", tree, "."], check=True)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in tree.rglob("*"):
            archive.write(path, path.relative_to(tree))
    for entries in (list_folder(tree), list_tar(tmp_path / "x.tar"), list_zip(tmp_path / "x.zip")):
        found = dict(entries)
        assert sorted(found) == ["a/", "a/1.png", "b c/", "b c/é/", "b c/é/2.png", "empty/", "x.txt"]
        for name, ref in found.items():
            assert ref is FOLDER if name.endswith("/") else ref.read() == name.encode()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("file", "an empty file"),
        ("gone", "no file or folder"),
        ("empty", "an empty folder"),
        ("hollow", "no files inside"),
        ("mixed", "with a class: 1"),
        ("pickle.pkl", "a pickle"),
    ],
)
def test_no_folder_of_images_is_refused_by_name_and_a_pickle_not_run(tmp_path, bomb, name, word):
    touch(tmp_path, "file", "mixed/a/1.png", "mixed/2.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow/a").mkdir(parents=True)
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps(bomb))
    with pytest.raises(DataError, match=rf"{name}.*{word}"):
        open_source(tmp_path / name)
    assert not bomb.went_off


def test_a_folder_that_can_not_be_listed_is_named(tmp_path, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("/sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    touch(tmp_path, "1.png", "sub/2.png")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ElboError, match=r"/sub: could not list"):
        open_source(tmp_path)


# Order and classes


def test_class_folders_and_files_are_in_byte_order_files_before_folders(tmp_path):
    source = open_source(touch(tmp_path, "b/2.png", "b/0/1.png", "b/10.png", "a/x.png", "B/y.png", "é/z.png"))
    assert source.class_names == ["B", "a", "b", "é"]
    assert source.files == ["B/y.png", "a/x.png", "b/10.png", "b/2.png", "b/0/1.png", "é/z.png"]
    assert source.labels == [0, 1, 2, 2, 2, 3]


def test_a_flat_folder_is_one_class_called_after_it_without_elbos_own_files(tmp_path, monkeypatch):
    own = ["x.h5", "x.h5.partial", "x.h5.partial.json", "x.h5.lock", "x.skipped.jsonl"]
    monkeypatch.chdir(touch(tmp_path / "cats", "2.png", "1.png", *own))
    source = open_source(Path())
    assert (source.files, source.labels, source.class_names) == (["1.png", "2.png"], [0, 0], ["cats"])


def test_linked_folders_and_files_count_once(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    touch(tmp_path / "root", "a/deep/3.png")
    (tmp_path / "root/a/2.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "root/a/deep/loop").symlink_to(tmp_path / "root/a")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    assert open_source(tmp_path / "root").files == ["a/2.png", "a/deep/3.png", "b/1.png"]


def test_papers_beside_class_folders_are_left_out_and_said(tmp_path):
    touch(tmp_path, "a/1.png", "b/2.png", "README.txt", "licence.pdf", "old.h5", "new.h5.partial")
    with heard() as said:
        source = open_source(tmp_path)
    assert source.files == ["a/1.png", "b/2.png"]
    assert len(said) == 1 and "2 files with neither" in said[0]


def test_a_folder_that_holds_one_folder_is_that_folder(tmp_path):
    touch(tmp_path, "imagenet/train/n02/2.png", "imagenet/train/n01/1.png")
    source = open_source(tmp_path / "imagenet")
    assert (source.class_names, source.files) == (["n01", "n02"], ["n01/1.png", "n02/2.png"])
    assert source.prefix + source.files[0] == f"{tmp_path}/imagenet/train/n01/1.png"
    (tmp_path / "imagenet/val").mkdir()
    with pytest.raises(DataError, match="train and val"):
        open_source(tmp_path / "imagenet")


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train test", True),
        ("TRAIN Valid extra", True),
        ("training_set test_set", True),
        ("train2017 val2017", True),
        ("dev test", True),
        ("train bus test-drive", False),
        ("bullet_train crash_test", False),
        ("ant bee test", False),
        ("ant dev test", False),
        ("val valid", False),
        ("trainer tester", False),
    ],
)
def test_splits_are_refused_as_classes_also_in_archives_unless_a_file_names_them(names, split, tmp_path):
    folders = names.split()
    root = touch(tmp_path / "in" / "top", *(f"{name}/{k}.png" for name in folders for k in "ab")).parent
    (tmp_path / "classes").write_text("\n".join(folders))
    (tmp_path / "labels").write_text("".join(f"{name}/{k}.png {name}\n" for name in folders for k in "ab"))
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(root, ".")
    for sources in (root, tmp_path / "in.tar", [root / "top" / name for name in folders]):
        if split:
            with pytest.raises(DataError, match=r"(?i)'elbo prep \S*(train|test)\S* OUT\.h5'"):
                open_source(sources)
        else:
            assert open_source(sources).class_names == sorted(folders)
        assert open_source(sources, class_names=tmp_path / "classes").class_names == folders
    assert open_source(root, labels=tmp_path / "labels").class_names == sorted(folders)


def test_one_class_with_folders_inside_is_one_class(tmp_path):
    source = open_source(touch(tmp_path, "cats/1.png", "cats/tabby/2.png"))
    assert (source.class_names, source.files, source.labels) == (["cats"], ["1.png", "tabby/2.png"], [0, 0])
    assert source.prefix + source.files[1] == f"{tmp_path}/cats/tabby/2.png"


def test_kinds_of_sources_mix_and_the_same_names_in_several_stay_apart(tmp_path):
    touch(tmp_path, "dogs/1.png", "dogs/puppies/2.png", "cats/1.png", "more/dogs/2.png", "more/cats/3.png")
    with tarfile.open(tmp_path / "dogs.tar", "w") as tar:
        tar.add(tmp_path / "cats/1.png", "4.png")
    source = open_source([tmp_path / name for name in ("dogs", "cats", "more", "dogs.tar")])
    names = ["dogs/1.png", "dogs/puppies/2.png", "cats/1.png", "cats/3.png", "dogs/2.png", "dogs/4.png"]
    assert source.files == names
    assert (source.class_names, source.labels) == (["cats", "dogs"], [1, 1, 0, 0, 1, 1])


# A choice


@pytest.fixture
def many(tmp_path):
    """100 of a, 50 of b, 7 of c."""
    names = [f"{name}/{index}.png" for name, count in (("a", 100), ("b", 50), ("c", 7)) for index in range(count)]
    return touch(tmp_path / "many", *names)


def test_train_and_val_are_the_same_two_parts_of_each_class_in_any_order(many, tmp_path):
    whole = open_source(many)
    val = choose(whole, subset=("val", 0.2))
    train = choose(whole, subset=("train", 0.2))
    assert Counter(val.labels) == {0: 20, 1: 10, 2: 1}
    assert sorted(val.files + train.files) == sorted(whole.files)
    assert val.files == [name for name in whole.files if name in set(val.files)]
    assert val.files[:20] != whole.files[:20]
    for order in ("c\nb\na\n", "b\n"):
        (tmp_path / "order").write_text(order)
        found = choose(open_source(many, class_names=tmp_path / "order"), subset=("val", 0.2))
        assert found.files == [name for name in val.files if name[0] in order]


def test_limit_counts_what_subset_leaves_and_keeps_the_classes(many):
    whole = open_source(many)
    few = choose(whole, subset=("val", 0.2), limit=9)
    assert few.files == choose(whole, subset=("val", 0.2)).files[:9] and few.class_names == whole.class_names
