"""The order and names of classes, and ILSVRC's training and validation sets agreeing on them."""

import numpy as np
import pytest
from packing import open_source
from scipy.io import savemat

from elbocli.errors import DataError
from elbocli.images.labels import read_classes_file, read_meta


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def animals(tmp_path):
    return touch(tmp_path / "animals", "bee/1.png", "ant/2.png", "hot dog/3.png", "ant/4.png")


@pytest.fixture
def listed(tmp_path):
    """listed(text): a classes file of that text."""

    def write(text):
        (tmp_path / "classes.txt").write_text(text)
        return tmp_path / "classes.txt"

    return write


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("hot dog\nbee\nant\n", ["hot dog", "bee", "ant"]),
        ("hot dog\tHot Dog\nbee\tA Bee\r\nant\n\n", ["Hot Dog", "A Bee", "ant"]),
        ("hot dog\nbee A Bee\nant  Ant, small\n", ["hot dog", "A Bee", "Ant, small"]),
    ],
)
def test_a_list_fixes_order_and_names(animals, listed, text, names):
    source = open_source(animals, classes=listed(text))
    assert source.files == ["ant/2.png", "ant/4.png", "bee/1.png", "hot dog/3.png"]
    assert (source.labels, source.class_names) == ([2, 2, 1, 0], names)


def test_a_list_of_some_classes_leaves_the_others_out(animals, listed):
    source = open_source(animals, classes=listed("ice cream\nhot dog\nant\n"))
    assert (source.files, source.labels) == (["ant/2.png", "ant/4.png", "hot dog/3.png"], [2, 2, 1])
    assert source.class_names == ["ice cream", "hot dog", "ant"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("ant\nbee\nant\n", "listed twice"), ("cow\n", "lists none of the classes"), ("\n", "empty")],
)
def test_lists_that_cannot_be(animals, listed, text, complaint):
    with pytest.raises(DataError, match=complaint):
        open_source(animals, classes=listed(text))


def test_a_list_names_numbers_by_line_or_by_key(tmp_path, listed):
    source = touch(tmp_path / "flat", "1.png", "2.png", "3.png")
    (tmp_path / "labels").write_text("1.png 0\n2.png 2\n3.png 1\n")

    def classes(text):
        found = open_source(source, labels=tmp_path / "labels", classes=listed(text))
        return found.labels, found.class_names

    assert classes("hot dog\nhot pot\nice\n") == ([0, 2, 1], ["hot dog", "hot pot", "ice"])
    assert classes("n00000003 tench\nn00000001 shark\nn00000002 ray, big\n") == (
        [0, 2, 1],
        ["tench", "shark", "ray, big"],
    )
    assert classes("2 two\n0 zero\n1 one\n") == ([1, 0, 2], ["two", "zero", "one"])
    assert classes("2\ttwo\n0\tzero\n") == ([1, 0], ["two", "zero"])
    with pytest.raises(DataError, match="to 2"):
        classes("zero\none\n")


def test_a_dataset_whose_classes_share_a_name_keeps_them_apart(pack, tmp_path, listed):
    path = pack("x.h5", names=("crane", "bee", "crane"))
    source = open_source(path)
    assert source.class_names == ["crane", "bee", "crane"] and source.labels[:3] == [0, 1, 2]
    with pytest.raises(DataError, match="two of its classes are called alike"):
        open_source(path, classes=listed("bee\n"))


# ILSVRC

WNIDS = {
    1: ("n02119789", "kit fox, Vulpes macrotis"),
    2: ("n02100735", "English setter"),
    3: ("n02012849", "crane"),
    4: ("n03126707", "crane"),
}


@pytest.fixture
def devkit(tmp_path):
    """data/ of a devkit with four classes: meta.mat as MATLAB lays it out, and a list for six images."""
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    rows = [
        (float(k), wnid, words, "a gloss", 0.0, np.zeros((0, 0)), 0.0, 1300.0) for k, (wnid, words) in WNIDS.items()
    ]
    rows.append((5.0, "n00001740", "entity", "that which is", 2.0, np.array([[1.0, 2.0]]), 19.0, 0.0))
    table = np.empty((len(rows), 1), dtype=[(name, object) for name in fields])
    for index, row in enumerate(rows):
        table[index, 0] = row
    folder = tmp_path / "devkit/data"
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": table})
    (folder / "truth.txt").write_text("4\n1\n1\n3\n2\n4\n")
    return folder


@pytest.fixture
def validation(tmp_path):
    return touch(tmp_path / "val", *(f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 7)))


@pytest.fixture
def training(tmp_path):
    return touch(tmp_path / "train", *(f"{wnid}/{wnid}_{k}.JPEG" for wnid, _ in WNIDS.values() for k in range(2)))


TRUTH = ["n03126707", "n02119789", "n02119789", "n02012849", "n02100735", "n03126707"]


def test_meta_mat_lists_leaves_in_the_order_of_their_numbers(devkit):
    meta = read_meta(devkit / "meta.mat")
    assert meta == ([wnid for wnid, _ in WNIDS.values()], [words for _, words in WNIDS.values()])


@pytest.mark.parametrize("content", [b"", b"text", b"MATLAB 5.0 MAT-file" + b" " * 200, b"\0" * 500])
def test_what_is_no_meta_mat_is_refused(tmp_path, content):
    (tmp_path / "meta.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"not the devkit's meta\.mat"):
        read_meta(tmp_path / "meta.mat")
    savemat(tmp_path / "meta.mat", {"synsets": np.zeros(3)})
    with pytest.raises(DataError, match=r"not the devkit's meta\.mat"):
        read_meta(tmp_path / "meta.mat")


@pytest.mark.parametrize(
    ("form", "order"),
    [(form, order) for form in ("ground truth", "kaggle") for order in ("sorted", "meta.mat", "own")]
    + [("caffe", "sorted")],
)
def test_training_and_validation_agree(training, validation, devkit, tmp_path, form, order):
    wnids = sorted(wnid for wnid, _ in WNIDS.values())
    classes = {"sorted": None, "meta.mat": devkit / "meta.mat", "own": tmp_path / "own.txt"}[order]
    (tmp_path / "own.txt").write_text(
        "".join(f"{wnid} name of {wnid}\n" for wnid in (wnids[2], wnids[0], wnids[3], wnids[1]))
    )
    labels = devkit / "truth.txt"
    names = sorted(path.name for path in validation.iterdir())
    if form == "kaggle":
        labels = tmp_path / "kaggle.csv"
        rows = [
            f"{name.removesuffix('.JPEG')},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n"
            for name, wnid in zip(names, TRUTH, strict=True)
        ]
        labels.write_text("ImageId,PredictionString\n" + "".join(rows[::-1]))
    elif form == "caffe":
        labels, classes = tmp_path / "val.txt", tmp_path / "synset_words.txt"
        labels.write_text("".join(f"{name} {wnids.index(wnid)}\n" for name, wnid in zip(names, TRUTH, strict=True)))
        classes.write_text("".join(f"{wnid} some words\n" for wnid in wnids))
    train, val = open_source(training, classes=classes), open_source(validation, labels=labels, classes=classes)
    assert train.class_names == val.class_names
    number = {name.partition("/")[0]: label for name, label in zip(train.files, train.labels, strict=True)}
    assert val.labels == [number[wnid] for wnid in TRUTH] and val.files == names


def test_numbers_without_meta_mat_count_from_one(validation, devkit):
    (devkit / "meta.mat").unlink()
    source = open_source(validation, labels=devkit / "truth.txt")
    assert source.labels == [3, 0, 0, 2, 1, 3] and source.class_names == ["1", "2", "3", "4"]


def test_numbers_that_are_not_ilsvrcs_are_refused(validation, devkit):
    (devkit / "truth.txt").write_text("0\n1\n1\n2\n1\n3\n")
    with pytest.raises(DataError, match="ILSVRC's numbers, 1 to 4"):
        open_source(validation, labels=devkit / "truth.txt", classes=devkit / "meta.mat")


def test_lines_are_keys_only_where_they_must_be(listed):
    path = listed("hot dog\nice cream\n")
    assert read_classes_file(path, {"ice cream"})[0] == ["hot dog", "ice cream"]
    assert read_classes_file(path, {"hot", "ice"})[1] == ["dog", "cream"]
