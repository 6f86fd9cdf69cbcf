"""Classes said by users' files: lists, CSV, ILSVRC's, EDM's dataset.json, webdataset's sidecars."""

import json
import tarfile
import zipfile

import pytest
from packing import open_source

from elbocli.errors import DataError
from elbocli.images.labels import read_labels_file

NAMES = ["val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000003.JPEG"]


@pytest.fixture
def read(tmp_path):
    """read(text, names): (classes, bare) from a labels file of that text."""

    def from_text(text, names=NAMES):
        (tmp_path / "labels").write_text(text)
        return read_labels_file(tmp_path / "labels", names)

    return from_text


@pytest.mark.parametrize(
    ("text", "expected", "bare"),
    [
        ("490\n361\n171\n", [490, 361, 171], True),
        ("n02\r\nn01\r\n\r\nn03\r\n", ["n02", "n01", "n03"], True),
        (
            "\ufeffILSVRC2012_val_00000002.JPEG 361\nILSVRC2012_val_00000001.JPEG 490\nILSVRC2012_val_00000003.JPEG 7\n",
            [490, 361, 7],
            False,
        ),
        (
            "ImageId,PredictionString\nILSVRC2012_val_00000003,n03 1 2 3 4 n03 9 9 9 9 \nILSVRC2012_val_00000001,n01 0 0 9 9 \n"
            "ILSVRC2012_val_00000002,n02 0 0 9 9 \n",
            ["n01", "n02", "n03"],
            False,
        ),
        ("".join(f"./{name}\thot dog\n" for name in NAMES), ["hot dog"] * 3, False),
        ("".join(f'"{name}","dog, hot",9\n' for name in NAMES), ["dog, hot"] * 3, False),
        ("".join(f"{name.rpartition('/')[2]}\tn02\t0\t32\t44\t62\n" for name in NAMES), ["n02"] * 3, False),
        ("".join(f"deep/er/{name} {k}\n" for k, name in enumerate(NAMES)), [0, 1, 2], False),
        (f"{NAMES[1]} 5\nanother 6\n", [None, 5, None], False),
    ],
    ids=["numbers", "words", "caffe", "kaggle", "tabs", "csv", "tiny-imagenet", "longer-paths", "some-only"],
)
def test_every_form_says_the_same(read, text, expected, bare):
    assert read(text) == (expected, bare)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1\n2\n", "2 lines for 3 images"),
        ("", "empty"),
        ("x.png 1\ny.png 2\n", "none of the 3 images"),
        (f"{NAMES[0]} 1\n{NAMES[0]} 2\n", "none of the 3 images has one class"),
    ],
)
def test_what_is_no_list_of_these_images_is_refused(read, text, complaint):
    with pytest.raises(DataError, match=complaint):
        read(text)


def test_a_labels_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "labels").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="utf-8"):
        read_labels_file(tmp_path / "labels", NAMES)
    (tmp_path / "labels").write_text(f'a,"{"x" * 200_000}"\n')
    with pytest.raises(DataError, match="not usable as CSV"):
        read_labels_file(tmp_path / "labels", NAMES)


def test_a_name_without_its_folder_does_not_choose_between_two(tmp_path):
    (tmp_path / "labels").write_text("a/1.png 3\nb/1.png 4\n")
    assert read_labels_file(tmp_path / "labels", ["b/1.png", "c/1.png"])[0] == [4, None]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_labels_beat_folders_and_leave_papers_out(tmp_path):
    source = touch(tmp_path / "src", "x/1.png", "y/2.png", "3.png", "README.md")
    (source / "labels.csv").write_text("1.png,cat\n2.png,dog\n3.png,cat\n")
    found = open_source(source, labels=source / "labels.csv")
    assert (found.files, found.labels, found.class_names) == (
        ["3.png", "x/1.png", "y/2.png"],
        [0, 0, 1],
        ["cat", "dog"],
    )
    touch(source, "4.png")
    with pytest.raises(DataError, match=r"4\.png: no class"):
        open_source(source, labels=source / "labels.csv")


# EDM's dataset.json


def edm(path, labels, names=("00000/img00000000.png", "00000/img00000001.png", "00000/img00000002.png"), extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names[::-1], *extra):
            archive.writestr(name, b"")
        archive.writestr("dataset.json", labels if isinstance(labels, str) else json.dumps({"labels": labels}))
    return path


def pairs(*numbers):
    return [[f"00000/img{index:08d}.png", number] for index, number in enumerate(numbers)]


def test_edm_labels(tmp_path):
    source = open_source(edm(tmp_path / "x.zip", pairs(2, 0, 2)))
    assert (source.labels, source.class_names) == ([2, 0, 2], ["0", "1", "2"])
    assert source.files == [f"00000/img{index:08d}.png" for index in range(3)]
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        archive.extractall(tmp_path / "x")
    assert open_source(tmp_path / "x").labels == [2, 0, 2]


def test_edm_without_labels_is_one_class(tmp_path):
    for labels in (None, "{}"):
        source = open_source(edm(tmp_path / "cats.zip", labels))
        assert (source.labels, source.class_names) == ([0, 0, 0], ["cats"])


def test_edm_images_that_are_not_there_and_papers(tmp_path):
    source = open_source(edm(tmp_path / "x.zip", pairs(1, 1, 0, 5), extra=["README.txt"]))
    assert source.labels == [1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (pairs(0, 1), r"img00000002\.png: no class"),
        ([["a", 1, 2]], "a list of"),
        ([["a", 1.5]], "a list of"),
        (pairs(0, -1, 1), "classes of images are -1"),
        (pairs(0, 10**30, 1), "to 1000"),
        (pairs(0, 100_000, 1), "to 100000"),
        ("{", "dataset.json"),
        ("[" * 100_000, "dataset.json"),
    ],
    ids=["missing", "triple", "fraction", "negative", "huge", "large", "cut", "deep"],
)
def test_edm_labels_that_cannot_be(tmp_path, labels, complaint):
    with pytest.raises(DataError, match=complaint):
        open_source(edm(tmp_path / "x.zip", labels))


# webdataset's shards


@pytest.fixture
def shard(tmp_path):
    """shard(name, {file: content}): a tar of these."""

    def make(name, files):
        folder = tmp_path / "made" / name
        path = tmp_path / "shards" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for file, content in files.items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(content)
                tar.add(folder / file, file)
        return path

    return make


@pytest.mark.parametrize(
    ("sides", "labels", "names"),
    [
        (({".cls": "3"}, {".cls": "0\n"}, {".cls": "3"}), [3, 0, 3], ["0", "1", "2", "3"]),
        (({".cls": "dog"}, {".cls": "cat"}, {".cls": "dog"}), [1, 0, 1], ["cat", "dog"]),
        (
            (
                {".json": '{"caption": "a", "label": 1}'},
                {".json": '{"label": 0, "class_name": "x"}'},
                {".json": '{"cls": "1"}'},
            ),
            [1, 0, 1],
            ["0", "1"],
        ),
        (
            ({".txt": "a dog", ".cls": "1"}, {".cls": "0", ".json": '{"label": 7}'}, {".cls": "1"}),
            [1, 0, 1],
            ["0", "1"],
        ),
    ],
    ids=["numbers", "words", "json", "captions-too"],
)
def test_webdataset_shards_one_by_one_or_in_a_folder(shard, sides, labels, names):
    paths = []
    for number, side in enumerate(sides):
        key = f"sample{number}"
        paths.append(
            shard(f"train-{number:06d}", {f"{key}.jpg": "", **{key + end: text for end, text in side.items()}})
        )
    by_name, in_folder = open_source(paths), open_source(paths[0].parent)
    for source in (by_name, in_folder):
        assert (source.labels, source.class_names) == (labels, names)
        assert source.files == [f"train-{k:06d}/sample{k}.jpg" for k in range(3)]


def test_a_sample_without_a_class_is_named(shard):
    path = shard("x", {"0.jpg": "", "0.cls": "1", "1.jpg": ""})
    with pytest.raises(DataError, match=r"1\.jpg: no class"):
        open_source(path)


def test_numbers_and_names_do_not_mix(shard):
    path = shard("x", {"0.jpg": "", "0.cls": "1", "1.jpg": "", "1.cls": "dog"})
    with pytest.raises(DataError, match="1 and dog"):
        open_source(path)


def test_captions_are_no_classes(shard):
    path = shard("x", {"0.jpg": "", "0.txt": "a dog", "1.jpg": "", "1.json": '{"caption": "a cat"}'})
    source = open_source(path)
    assert (source.files, source.labels, source.class_names) == (["0.jpg", "1.jpg"], [0, 0], ["x"])
    other = shard("y", {"2.jpg": "", "2.txt": "a dog"})
    for shards in ([path, other], path.parent):
        source = open_source(shards)
        assert source.class_names == ["x", "y"]
