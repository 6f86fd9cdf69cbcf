import inspect
import os
import sys
from pathlib import Path

import pytest

from elbocli.errors import DataError
from elbocli.files.sources import choose, open_source


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_class_folders_are_classes_in_byte_order(tmp_path):
    source = open_source(touch(tmp_path, "b/2.png", "b/10.png", "a/x.png", "B/y.png", "é/z.png"))
    assert source.class_names == ["B", "a", "b", "é"]
    assert source.files == ["B/y.png", "a/x.png", "b/10.png", "b/2.png", "é/z.png"]
    assert source.labels == [0, 1, 2, 2, 3]


def test_files_are_found_at_any_depth_of_their_class(tmp_path):
    source = open_source(touch(tmp_path, "a/1.png", "a/deep/er/2.png", "b/3.png"))
    assert source.files == ["a/1.png", "a/deep/er/2.png", "b/3.png"]
    assert source.labels == [0, 0, 1]


def test_a_flat_folder_is_one_class_called_after_it(tmp_path):
    source = open_source(touch(tmp_path / "cats", "2.png", "1.png"))
    assert (source.files, source.labels, source.class_names) == (["1.png", "2.png"], [0, 0], ["cats"])


def test_the_folder_one_is_in_has_a_name_too(tmp_path, monkeypatch):
    touch(tmp_path / "cats", "1.png")
    monkeypatch.chdir(tmp_path / "cats")
    assert open_source(Path()).class_names == ["cats"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    source = open_source(touch(tmp_path, "a/1.png", "a/.DS_Store", ".git/x", ".hidden"))
    assert source.files == ["a/1.png"]


def test_limit_takes_the_first_images_but_all_the_classes(tmp_path):
    source = choose(open_source(touch(tmp_path, "a/1.png", "a/2.png", "b/3.png")), limit=2)
    assert (source.files, source.labels, source.class_names) == (["a/1.png", "a/2.png"], [0, 0], ["a", "b"])


def test_an_empty_class_stays_a_class(tmp_path):
    touch(tmp_path, "b/1.png")
    (tmp_path / "a").mkdir()
    source = open_source(tmp_path)
    assert (source.class_names, source.labels) == (["a", "b"], [1])


def test_names_that_are_not_utf8_are_kept(tmp_path):
    (tmp_path / "a").mkdir()
    raw = os.fsencode(tmp_path) + b"/a/\xff.png"
    with open(raw, "wb"):
        pass
    (name,) = open_source(tmp_path).files
    assert os.fsencode(name) == b"a/\xff.png"


def test_a_folder_linked_into_itself_is_entered_once(tmp_path):
    touch(tmp_path, "a/1.png", "a/b/2.png")
    (tmp_path / "a/b/loop").symlink_to(tmp_path / "a")
    assert open_source(tmp_path).files == ["a/1.png", "a/b/2.png"]


def test_linked_folders_and_files_count(tmp_path):
    touch(tmp_path / "elsewhere", "1.png")
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/2.png").symlink_to(tmp_path / "elsewhere/1.png")
    assert open_source(tmp_path / "root").files == ["a/2.png", "b/1.png"]


def test_what_is_no_folder_of_images_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow/a").mkdir(parents=True)
    touch(tmp_path / "mixed", "a/1.png", "2.png")
    for name, what in (
        ("file", "is a file"),
        ("gone", "no such folder"),
        ("empty", "no files inside"),
        ("hollow", "no files inside"),
        ("mixed", "both class folders"),
    ):
        with pytest.raises(DataError, match=f"{name}: .*{what}"):
            open_source(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(DataError, match="could not list"):
            open_source(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


def test_folders_may_be_nested_deeper_than_the_stack(tmp_path):
    name = "a/" + "d/" * 900 + "x.png"
    touch(tmp_path, name)
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 120)
    try:
        assert open_source(tmp_path).files == [name]
    finally:
        sys.setrecursionlimit(usual)
