import os
import pickle
import re
import tarfile
from pathlib import Path

import pytest
from packing import messages, open_source

from elbocli.errors import DataError, ElboError
from elbocli.images.sources import choose

PAGE = Path(__file__).parents[2] / "docs/prep.md"


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


def test_files_come_in_the_order_that_the_page_shows(tmp_path):
    page = PAGE.read_text()
    shown = re.search(r"files come before folders, [^:]*:\n? *((?:`[^`]+\.png`,? ?)+)\. EDM sorts", page)
    expected = re.findall("`([^`]+)`", shown[1])
    source = open_source(touch(tmp_path, *sorted(expected, reverse=True)))
    assert source.files == expected and len(expected) == 4
    (first,) = re.findall(r"EDM sorts whole paths, and has `([^`]+)` first", page)
    assert min(expected) == first != expected[0]
    assert source.labels == [0, 0, 0, 1]


def test_a_flat_folder_is_one_class_called_after_it(tmp_path):
    source = open_source(touch(tmp_path / "cats", "2.png", "1.png"))
    assert (source.files, source.labels, source.class_names) == (["1.png", "2.png"], [0, 0], ["cats"])


def test_the_folder_one_is_in_has_a_name_too(tmp_path, monkeypatch):
    touch(tmp_path / "cats", "1.png")
    monkeypatch.chdir(tmp_path / "cats")
    assert open_source(Path()).class_names == ["cats"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    source = open_source(touch(tmp_path, "a/1.png", "b/2.png", "a/.DS_Store", ".git/x", ".hidden", "__MACOSX/a/1.png"))
    assert (source.files, source.class_names) == (["a/1.png", "b/2.png"], ["a", "b"])


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
    assert os.fsencode(name) == b"\xff.png"


def test_a_folder_linked_into_itself_is_entered_once(tmp_path):
    touch(tmp_path, "a/1.png", "a/b/2.png")
    (tmp_path / "a/b/loop").symlink_to(tmp_path / "a")
    assert open_source(tmp_path).files == ["1.png", "b/2.png"]


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
        ("file", "is none of"),
        ("gone", "No such file"),
        ("empty", "no files inside"),
        ("hollow", "no files inside"),
        ("mixed", "no class, but"),
    ):
        with pytest.raises(DataError, match=rf"{name}.*{what}"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_is_refused_and_not_run(tmp_path, bomb, protocol):
    (tmp_path / "ref.pkl").write_bytes(pickle.dumps({"fid": bomb}, protocol))
    with pytest.raises(ElboError, match=r"ref\.pkl"):
        open_source(tmp_path / "ref.pkl")
    assert not bomb.went_off


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(DataError, match="could not list"):
            open_source(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


# What is left out, and what is refused


def test_papers_beside_class_folders_are_left_out_and_said(tmp_path):
    touch(tmp_path, "a/1.png", "b/2.png", "README.txt", "licence.pdf", "old.h5", "new.h5.partial")
    with messages() as said:
        source = open_source(tmp_path)
    assert source.files == ["a/1.png", "b/2.png"]
    assert len(said) == 1 and "README.txt" in said[0]


def test_images_beside_class_folders_are_refused_unless_labels_say_more(tmp_path):
    touch(tmp_path / "src", "a/1.png", "b/2.png", "loose.JPEG")
    with pytest.raises(DataError, match="--labels"):
        open_source(tmp_path / "src")
    (tmp_path / "labels").write_text("1.png x\n2.png y\nloose x\n")
    assert open_source(tmp_path / "src", labels=tmp_path / "labels").labels == [0, 0, 1]


def test_elbos_own_files_in_a_flat_folder_are_no_images(tmp_path):
    own = ["x.h5", "x.h5.partial", "x.h5.partial.json", "x.h5.partial.runs", "x.h5.lock", "x.skipped.jsonl"]
    assert open_source(touch(tmp_path, "1.png", *own)).files == ["1.png"]


def test_a_folder_that_holds_one_folder_is_that_folder(tmp_path):
    touch(tmp_path, "imagenet/train/n02/2.png", "imagenet/train/n01/1.png")
    source = open_source(tmp_path / "imagenet")
    assert (source.class_names, source.files) == (["n01", "n02"], ["n01/1.png", "n02/2.png"])
    assert source.shown(0) == f"{tmp_path}/imagenet/train/n01/1.png"
    (tmp_path / "imagenet/val").mkdir()
    assert open_source(tmp_path / "imagenet").class_names == ["train", "val"]


def test_one_class_with_folders_inside_is_one_class(tmp_path):
    source = open_source(touch(tmp_path, "cats/1.png", "cats/tabby/2.png"))
    assert (source.class_names, source.files, source.labels) == (["cats"], ["1.png", "tabby/2.png"], [0, 0])
    assert [source.shown(0), source.shown(1)] == [f"{tmp_path}/cats/1.png", f"{tmp_path}/cats/tabby/2.png"]


def test_the_same_names_in_several_sources_stay_apart(tmp_path):
    touch(tmp_path, "cats/1.png", "dogs/1.png", "dogs/puppies/2.png")
    source = open_source([tmp_path / "dogs", tmp_path / "cats"])
    assert source.files == ["dogs/1.png", "dogs/puppies/2.png", "cats/1.png"]
    assert (source.class_names, source.labels) == (["cats", "dogs"], [1, 1, 0])


def test_kinds_of_sources_mix(tmp_path):
    touch(tmp_path, "cats/1.png", "more/dogs/2.png", "more/cats/3.png")
    with tarfile.open(tmp_path / "dogs.tar", "w") as tar:
        tar.add(tmp_path / "cats/1.png", "4.png")
    source = open_source([tmp_path / "cats", tmp_path / "more", tmp_path / "dogs.tar"])
    assert source.files == ["cats/1.png", "cats/3.png", "dogs/2.png", "dogs/4.png"]
    assert (source.class_names, source.labels) == (["cats", "dogs"], [0, 0, 1, 1])


# Choosing


@pytest.fixture
def many(tmp_path):
    """100 of a, 50 of b, 7 of c."""
    names = [f"{name}/{index}.png" for name, count in (("a", 100), ("b", 50), ("c", 7)) for index in range(count)]
    return touch(tmp_path / "many", *names)


def counts(source):
    return {name: source.labels.count(number) for number, name in enumerate(source.class_names)}


def test_train_and_val_are_the_two_parts_of_each_class(many):
    whole = open_source(many)
    val, train = choose(whole, subset=("val", 0.2)), choose(whole, subset=("train", 0.2))
    assert counts(val) == {"a": 20, "b": 10, "c": 1} and counts(train) == {"a": 80, "b": 40, "c": 6}
    assert sorted(val.files + train.files) == sorted(whole.files)
    assert val.files == [name for name in whole.files if name in set(val.files)]
    assert val.files[:20] != whole.files[:20]


def test_the_held_out_part_is_always_the_same(many, tmp_path):
    whole = open_source(many)
    val = set(choose(whole, subset=("val", 0.2)).files)
    shuffled = choose(whole, subset=("val", 0.2), shuffle_seed=5)
    assert set(shuffled.files) == val and shuffled.files != sorted(shuffled.files)
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for path in sorted(many.rglob("*.png"), reverse=True):
            tar.add(path, path.relative_to(many))
    assert set(choose(open_source(tmp_path / "many.tar"), subset=("val", 0.2)).files) == val
    (tmp_path / "order").write_text("c\nb\na\n")
    assert set(choose(open_source(many, classes=tmp_path / "order"), subset=("val", 0.2)).files) == val
    (tmp_path / "order").write_text("b\n")
    assert set(choose(open_source(many, classes=tmp_path / "order"), subset=("val", 0.2)).files) < val


def test_limit_counts_what_subset_and_shuffling_leave(many):
    whole = open_source(many)
    one = choose(whole, subset=("val", 0.2), shuffle_seed=1)
    assert choose(whole, subset=("val", 0.2), shuffle_seed=1, limit=9).files == one.files[:9]
    assert choose(whole, shuffle_seed=1).files != choose(whole, shuffle_seed=2).files
    assert choose(whole, shuffle_seed=1).files == choose(whole, shuffle_seed=1).files


@pytest.mark.parametrize("count", [1, 2, 3, 157, 200])
def test_shards_follow_each_other_and_differ_by_one_at_most(many, count):
    whole, files, sizes = open_source(many), [], []
    for index in range(1, count + 1):
        try:
            part = choose(whole, shard=(index, count))
        except DataError as error:
            assert count > len(whole) and "no images are left" in str(error)
            continue
        files += part.files
        sizes.append(len(part))
    assert files == whole.files and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("group", [1, 3, 7, 50])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_shards_are_all_of_it_once_and_begin_with_a_group_where_there_are_enough(tmp_path, group, count):
    source = open_source(touch(tmp_path, *(f"{k:02d}.png" for k in range(25))))
    shards = [choose(source, shard=(k + 1, count), group=group).files for k in range(count)]
    assert [file for files in shards for file in files] == source.files
    assert all(shards)
    if count * group <= 25:
        assert all(source.files.index(files[0]) % group == 0 for files in shards)
