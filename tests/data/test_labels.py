"""Users' files say the class of each image (lists, CSV, EDM's dataset.json, webdataset's sidecars) and the classes' order."""

import json
import tarfile
import zipfile

import numpy as np
import pytest
from calls import open_source, touch
from scipy.io import savemat

from elbocli.data.labels import read_labels_file, read_meta
from elbocli.errors import DataError

NAMES = [f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)]
LAST = [name.rpartition("/")[2] for name in NAMES]


@pytest.fixture
def listed(tmp_path):
    """listed(text): a file of that text."""

    def write(text, name="listed.txt"):
        (tmp_path / name).write_text(text, newline="")
        return tmp_path / name

    return write


# --labels


@pytest.mark.parametrize(
    ("text", "expected", "bare"),
    [
        ("490\n361\n171\n", [490, 361, 171], True),
        ("n02\r\nn01\r\n\r\nn03\r\n", ["n02", "n01", "n03"], True),
        (f"\ufeff{LAST[1]} 361\n{LAST[0]} 490\n{LAST[2]} 7\n", [490, 361, 7], False),
        (
            "ImageId,PredictionString\nILSVRC2012_val_00000003,n03 1 2 3 4 n03 9 9 9 9 \n"
            "ILSVRC2012_val_00000001,n01 0 0 9 9 \nILSVRC2012_val_00000002,n02 0 0 9 9 \n",
            ["n01", "n02", "n03"],
            False,
        ),
        ("".join(f"./{name}\thot dog\n" for name in NAMES), ["hot dog"] * 3, False),
        ("".join(f'"{name}","dog, hot",9\n' for name in NAMES), ["dog, hot"] * 3, False),
        ("".join(f"{name}\tn02\t0\t32\t44\t62\n" for name in LAST), ["n02"] * 3, False),
        ("".join(f"deep/er/{name} {k}\n" for k, name in enumerate(NAMES)), [0, 1, 2], False),
        (f"{NAMES[1]} 5\nanother 6\n", [None, 5, None], False),
        (f"a/{LAST[0]} 3\nb/{LAST[0]} 4\n{NAMES[2]} 1234567890\n", [None, None, "1234567890"], False),
    ],
)
def test_every_form_says_the_same(listed, text, expected, bare):
    assert read_labels_file(listed(text), NAMES) == (expected, bare)


def test_a_line_that_fits_several_images_is_refused_and_a_path_fits_only_its_own(tmp_path):
    names = ["a/1.png", "b/1.png", "b/2.png"]
    labels = tmp_path / "labels"
    for line in ("1.png x", "1 x", "else/1.png x"):
        labels.write_text(f"{line}\n2.png y\n")
        with pytest.raises(DataError, match=r"a/1\.png and b/1\.png"):
            read_labels_file(labels, names)
    labels.write_text("a/1.png x\n2.png y\n")
    assert read_labels_file(labels, names) == (["x", None, "y"], False)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"1\n2\n", "2 lines for 3"),
        (b"", "empty"),
        (b"x.png 1\ny.png 2\n", "none"),
        (f"{NAMES[0]} 1\n{NAMES[0]} 2\n".encode(), "none"),
        (b"\x1f\x8b\x08", "not a text file.*without --labels"),
        (b'a,"' + b"x" * 200_000 + b'"\n', "CSV"),
    ],
    ids=range(6),
)
def test_a_list_of_other_images_is_refused(tmp_path, content, word):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(DataError, match=word):
        read_labels_file(tmp_path / "labels", NAMES)


def test_a_whole_path_comes_before_its_last_part(listed):
    assert read_labels_file(listed("a/1.png 3\nb/1.png 4\n"), ["b/1.png", "c/1.png"])[0] == [4, None]


def test_labels_beat_folders_and_leave_papers_out(tmp_path, listed):
    source = touch(tmp_path / "src", "x/1.png", "y/2.png", "3.JPEG", "README.md")
    with pytest.raises(DataError, match="--labels"):
        open_source(source)
    labels = listed("1.png,cat\n2.png,dog\n3.JPEG,cat\n", "src/labels.csv")
    found = open_source(source, labels=labels)
    assert found.files == ["3.JPEG", "x/1.png", "y/2.png"]
    assert (found.labels, found.class_names) == ([0, 0, 1], ["cat", "dog"])
    touch(source, "4.png")
    with pytest.raises(DataError, match=r"4\.png"):
        open_source(source, labels=labels)


# EDM's dataset.json


def edm(path, labels, *extra):
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*(f"00000/img{index:08d}.png" for index in (2, 1, 0)), *extra):
            archive.writestr(name, b"")
        archive.writestr("dataset.json", labels if isinstance(labels, str) else json.dumps({"labels": labels}))
    return path


def pairs(*numbers):
    return [[f"00000/img{index:08d}.png", number] for index, number in enumerate(numbers)]


def test_edm_labels_its_images_in_a_zip_and_in_a_folder(tmp_path):
    with zipfile.ZipFile(edm(tmp_path / "x.zip", pairs(2, 0, 2, 5), "README.txt")) as archive:
        archive.extractall(tmp_path / "x")
    for path in (tmp_path / "x.zip", tmp_path / "x"):
        source = open_source(path)
        assert (source.labels, source.class_names) == ([2, 0, 2], ["0", "1", "2"])
        assert source.files == [f"00000/img{index:08d}.png" for index in range(3)]
    for labels in (None, "{}"):
        source = open_source(edm(tmp_path / "cats.zip", labels))
        assert (source.labels, source.class_names) == ([0, 0, 0], ["cats"])


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (pairs(0, 1), r"img00000002\.png"),
        ([["a", 1.5]], "a list"),
        (pairs(0, -1, 1), "-1"),
        (pairs(0, 10**30, 1), "to 1000"),
        ("{", "dataset.json"),
        ("[" * 100_000, "dataset.json"),
    ],
    ids=range(6),
)
def test_edm_labels_that_cannot_be_are_refused(tmp_path, labels, word):
    with pytest.raises(DataError, match=word):
        open_source(edm(tmp_path / "x.zip", labels))


# webdataset's shards


@pytest.fixture
def shard(tmp_path):
    """shard(name, {file: content}): a tar of these."""

    def make(name, files):
        path = tmp_path / "shards" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for file, content in files.items():
                (tmp_path / file).write_text(content)
                tar.add(tmp_path / file, file)
        return path

    return make


@pytest.mark.parametrize(
    ("sides", "labels", "names"),
    [
        (({".cls": "3"}, {".cls": "0\n"}, {".cls": "3"}), [3, 0, 3], ["0", "1", "2", "3"]),
        (({".cls": "1"}, {".cls": "0", ".json": '{"label": 7}'}, {".cls": "1"}), [1, 0, 1], ["0", "1"]),
        (({".txt": "a dog"}, {".json": '{"caption": "a cat"}'}, {}), [0, 1, 2], ["t-0", "t-1", "t-2"]),
    ],
)
def test_webdataset_shards_one_by_one_or_in_a_folder(shard, sides, labels, names):
    paths = [
        shard(f"t-{number}", {f"{number}.jpg": "", **{f"{number}{end}": text for end, text in side.items()}})
        for number, side in enumerate(sides)
    ]
    for source in (open_source(paths), open_source(paths[0].parent)):
        assert (source.labels, source.class_names) == (labels, names)
        assert source.files == [f"t-{number}/{number}.jpg" for number in range(3)]


@pytest.mark.parametrize(("more", "word"), [({}, r"1\.jpg"), ({"1.cls": "dog"}, "1 and 'dog'")])
def test_a_class_that_is_missing_or_of_another_kind_is_named(shard, more, word):
    with pytest.raises(DataError, match=word):
        open_source(shard("x", {"0.jpg": "", "0.cls": "1", "1.jpg": "", **more}))


# --classes


@pytest.fixture
def animals(tmp_path):
    return touch(tmp_path / "animals", "bee/1.png", "ant/2.png", "hot dog/3.png", "ant/4.png")


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("hot dog\nbee\nant\n", [2, 2, 1, 0], ["hot dog", "bee", "ant"]),
        ("hot dog\tHot Dog\nbee\tA Bee\r\nant\n\n", [2, 2, 1, 0], ["Hot Dog", "A Bee", "ant"]),
        ("ice cream\nhot dog\nant\n", [2, 2, 1], ["ice cream", "hot dog", "ant"]),
    ],
)
def test_a_list_fixes_order_and_names_and_leaves_other_classes_out(animals, listed, text, labels, names):
    source = open_source(animals, class_names=listed(text))
    files = ["ant/2.png", "ant/4.png", "bee/1.png", "hot dog/3.png"]
    assert source.files == [file for file in files if "bee" in text or "bee" not in file]
    assert (source.labels, source.class_names) == (labels, names)


@pytest.mark.parametrize(("text", "word"), [("ant\nbee\nant\n", "twice"), ("cow\n", "none of"), ("\n", "empty")])
def test_lists_that_cannot_be_are_refused(animals, listed, text, word):
    with pytest.raises(DataError, match=word):
        open_source(animals, class_names=listed(text))


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("hot dog\nhot pot\nice\n", [0, 2, 1], ["hot dog", "hot pot", "ice"]),
        ("n00000003 tench\nn00000001 shark\nn00000002 ray, big\n", [0, 2, 1], ["tench", "shark", "ray, big"]),
        ("2 two\n0 zero\n1 one\n", [1, 0, 2], ["two", "zero", "one"]),
        ("2\ttwo\n0\tzero\n", [1, 0], ["two", "zero"]),
    ],
)
def test_a_list_names_numbers_by_line_or_by_key(tmp_path, listed, text, labels, names):
    source = touch(tmp_path / "flat", "1.png", "2.png", "3.png")
    numbers = listed("1.png 0\n2.png 2\n3.png 1\n", "labels")
    found = open_source(source, labels=numbers, class_names=listed(text))
    assert (found.labels, found.class_names) == (labels, names)
    with pytest.raises(DataError, match="to 2"):
        open_source(source, labels=numbers, class_names=listed("zero\none\n"))


def test_a_dataset_whose_classes_share_a_name_keeps_them_apart(pack, listed):
    path = pack("x.h5", names=("crane", "bee", "crane"))
    source = open_source(path)
    assert source.class_names == ["crane", "bee", "crane"] and source.labels[:3] == [0, 1, 2]
    with pytest.raises(DataError, match="2 classes"):
        open_source(path, class_names=listed("bee\n"))


# ILSVRC

WNIDS = {"n02119789": "kit fox, Vulpes macrotis", "n02100735": "Setter", "n02012849": "crane", "n03126707": "crane"}
NUMBERS = (4, 1, 1, 3, 2, 4)


@pytest.fixture
def devkit(tmp_path):
    """data/ of a devkit with four classes: meta.mat as MATLAB lays it out, and a list for six images."""
    rows = [(float(k), wnid, words, 0.0) for k, (wnid, words) in enumerate(WNIDS.items(), 1)]
    rows = [rows[2], rows[0], (5.0, "n00001740", "entity", 2.0), rows[1], rows[3]]
    table = np.empty((5, 1), [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")])
    table[:, 0] = rows
    savemat(tmp_path / "meta.mat", {"synsets": table})
    (tmp_path / "truth.txt").write_text("".join(f"{number}\n" for number in NUMBERS))
    return tmp_path


@pytest.fixture
def validation(tmp_path):
    return touch(tmp_path / "val", *(f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 7)))


def test_meta_mat_lists_leaves_in_the_order_of_their_numbers(devkit):
    assert read_meta(devkit / "meta.mat") == (list(WNIDS), list(WNIDS.values()))


@pytest.mark.parametrize("content", [b"", b"text", b"MATLAB 5.0 MAT-file" + b" " * 200, b"\0" * 500, None])
def test_another_file_than_meta_mat_is_refused(tmp_path, content):
    if content is None:
        savemat(tmp_path / "meta.mat", {"synsets": np.zeros(3)})
    else:
        (tmp_path / "meta.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"meta\.mat"):
        read_meta(tmp_path / "meta.mat")


@pytest.mark.parametrize("order", ["sorted", "meta.mat", "own"])
def test_training_and_validation_agree(validation, devkit, listed, order):
    training = touch(devkit / "train", *(f"{wnid}/{wnid}_{k}.JPEG" for wnid in WNIDS for k in range(2)))
    own = listed("".join(f"{wnid} some words\n" for wnid in sorted(WNIDS)[::-1]))
    classes = {"sorted": None, "meta.mat": devkit / "meta.mat", "own": own}[order]
    train = open_source(training, class_names=classes)
    val = open_source(validation, labels=devkit / "truth.txt", class_names=classes)
    assert train.class_names == val.class_names and val.files == sorted(val.files)
    number = {name.partition("/")[0]: label for name, label in zip(train.files, train.labels, strict=True)}
    assert val.labels == [number[list(WNIDS)[at - 1]] for at in NUMBERS]


def test_numbers_count_from_one_without_meta_mat_and_are_ilsvrcs_with_it(validation, devkit):
    truth = devkit / "truth.txt"
    meta = (devkit / "meta.mat").rename(devkit / "moved.mat")
    source = open_source(validation, labels=truth)
    assert source.labels == [3, 0, 0, 2, 1, 3] and source.class_names == ["1", "2", "3", "4"]
    meta.rename(devkit / "meta.mat")
    truth.write_text("0\n1\n1\n2\n1\n3\n")
    with pytest.raises(DataError, match="1 to 4"):
        open_source(validation, labels=truth)
