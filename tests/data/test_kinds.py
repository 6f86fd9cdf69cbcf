"""Array files, other datasets, and published sets (CIFAR's, MNIST's, parquet): the images and labels that were written."""

import gzip
import io
import json
import struct
import subprocess
import sys
import zipfile
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from calls import open_source, packed
from harness import heard
from PIL import Image
from pyarrow.parquet import write_table

from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files.dataset import Dataset

SAVES = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
LABELS = [2, 0, 2, 1, 0, 2, 2, 1, 1, 0, 2]
RGB, GREY = (np.random.default_rng(0).integers(0, 256, (11, *shape), np.uint8) for shape in ((32, 32, 3), (8, 8, 1)))
ROWS = RGB[:, :8, :8]


def files_of(data):
    return data.contents()["files"]


def pixels(data):
    return next(data.batches(len(data)))


# Arrays


@SAVES
@pytest.mark.parametrize(("images", "labels"), [("arr_0", "arr_1"), ("x_train", "y_train")])
def test_an_npz_has_images_and_labels_in_any_part_and_order(tmp_path, save, images, labels):
    save(tmp_path / "x.npz", **{images: ROWS, labels: np.array(LABELS)})
    whole = packed(tmp_path / "x.npz", tmp_path / "x.h5", crop="none")
    assert whole.class_names == ["0", "1", "2"] and files_of(whole) == [str(row) for row in range(11)]
    part = packed(tmp_path / "x.npz", tmp_path / "val.h5", subset=("val", 0.5))
    assert 0 < len(part) < 11
    for data in (whole, part):
        order = list(map(int, files_of(data)))
        assert np.array_equal(pixels(data), ROWS[order])
        assert data.labels.tolist() == [LABELS[row] for row in order]


@SAVES
def test_an_npz_or_npy_without_labels_is_one_class(tmp_path, save):
    save(tmp_path / "cats.npz", GREY)
    np.save(tmp_path / "cats.npy", GREY[..., 0])
    for name in ("cats.npz", "cats.npy"):
        data = packed(tmp_path / name, tmp_path / f"{name}.h5")
        assert np.array_equal(pixels(data), GREY) and data.class_names == ["cats"]


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"arr_0": ROWS.astype(np.float32)}, "float32"),
        ({"arr_0": ROWS.transpose(0, 3, 1, 2)}, "expected uint8"),
        *(({"arr_0": ROWS[:2], "arr_1": np.array(labels)}, "arr_1") for labels in ([1, 2, 3], [0.5, 1], [[1, 2]], ["a", "b"])),
        ({"arr_0": ROWS[:2], "arr_1": np.array([0, -1])}, "-1"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "mu"),
    ],
)
def test_other_arrays_than_images_and_labels_are_refused(tmp_path, arrays, word):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises((FormatError, DataError), match=word):
        open_source(tmp_path / "x.npz")


# Datasets


def test_a_dataset_of_a_dataset_is_the_same(pack, tmp_path):
    names = ["hot dog", "ant", "bee", "none"]
    source = pack("x.h5", ROWS, LABELS, names)
    data = packed(source, tmp_path / "again.h5")
    assert np.array_equal(pixels(data), ROWS) and files_of(data) == [f"{row}.png" for row in range(11)]
    assert data.labels.tolist() == LABELS and data.class_names == names
    assert data.attributes.payload_sha256 == Dataset(source).attributes.payload_sha256


def test_two_datasets_share_their_classes_by_name(pack):
    names = [("cat", "ant", "bee"), ("bee", "dog", "ant")]
    source = open_source([pack(f"{number}.h5", ROWS, LABELS, each) for number, each in enumerate(names)])
    assert source.class_names == ["ant", "bee", "cat", "dog"]
    assert [source.class_names[label] for label in source.labels] == [each[k] for each in names for k in LABELS]


# CIFAR


def batch(images, classes=10):
    """A binary batch: image k is of class 7 k, with a coarse class before it in CIFAR-100."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    heads = [bytes([7 * k % classes]) if classes == 10 else bytes([9, 7 * k % classes]) for k in range(len(images))]
    return b"".join(head + row.tobytes() for head, row in zip(heads, planes, strict=True))


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-10 of 6 images in two batches, and 5 for testing."""
    folder = tmp_path / "cifar-10"
    folder.mkdir()
    for name, part in (("data_batch_1", slice(3)), ("data_batch_2", slice(3, 6)), ("test_batch", slice(6, None))):
        (folder / f"{name}.bin").write_bytes(batch(RGB[part]))
    (folder / "readme.html").write_text("<html>")
    (folder / "batches.meta.txt").write_text("a b c d e f g h i j\n\n")
    return folder


def test_every_form_of_cifar_10_is_the_same_training_images(cifar, tmp_path):
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", tmp_path, cifar.name], check=True)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in cifar.iterdir():
            archive.write(path, f"{cifar.name}/{path.name}")
    with heard() as said:
        sources = [open_source(source) for source in (cifar, tmp_path / "x.tar", tmp_path / "x.zip")]
    assert "left out: test_batch.bin" in said[0]
    for source in sources:
        assert np.array_equal([ref.read() for ref in source.refs], RGB[:6])
        assert source.labels == [0, 7, 4] * 2 and source.class_names == list("abcdefghij")
        assert source.files[2:4] == ["data_batch_1/2", "data_batch_2/0"]
    assert len(open_source(cifar / "test_batch.bin")) == 5


def test_cifar_100_has_its_fine_classes(tmp_path):
    names = [f"class_{number:02d}" for number in range(100)]
    (tmp_path / "train.bin").write_bytes(batch(RGB, 100))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(names))
    found = open_source(tmp_path)
    assert np.array_equal([ref.read() for ref in found.refs], RGB)
    assert found.class_names == names and found.labels == [7 * k for k in range(11)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("batches.meta.txt", names) for names in (b"ant bee", b"ant " * 10, b"\xff")]
    + [("data_batch_2.bin", content) for content in (bytes(3074), b"text", b"\x0a" + bytes(3072))],
)
def test_other_names_and_batches_than_cifars_are_refused(cifar, name, content):
    (cifar / name).write_bytes(content)
    with pytest.raises(FormatError):
        open_source(cifar)
    (cifar / name).unlink()
    assert len(open_source(cifar).class_names) == 10


# MNIST


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


PLAIN = idx(GREY[..., 0])
NUMBERS = np.array(LABELS, np.uint8)
COMPRESSIONS = pytest.mark.parametrize(("compress", "end"), [(bytes, ""), (gzip.compress, ".gz")], ids=["plain", "gz"])


def mnist(folder, part="train", compress=bytes, end=""):
    for kind, content in (("images-idx3", PLAIN), ("labels-idx1", idx(NUMBERS))):
        (folder / f"{part}-{kind}-ubyte{end}").write_bytes(compress(content))


@COMPRESSIONS
def test_a_folder_of_mnists_files_becomes_its_training_images(tmp_path, compress, end):
    mnist(tmp_path, compress=compress, end=end)
    (tmp_path / f"t10k-images-idx3-ubyte{end}").write_bytes(compress(idx(GREY[:5, ..., 0])))
    with heard() as said:
        found = [open_source(tmp_path), open_source(tmp_path / f"train-images-idx3-ubyte{end}")]
    assert [f"left out: t10k-images-idx3-ubyte{end}" in text for text in said] == [True]
    for source in found:
        assert np.array_equal([ref.read() for ref in source.refs], GREY)
        assert source.labels == LABELS and source.class_names == ["0", "1", "2"]


def test_the_content_says_it_and_images_without_labels_are_one_class(tmp_path):
    (tmp_path / "digits").write_bytes(PLAIN)
    with heard() as said:
        source = open_source(tmp_path / "digits")
    assert np.array_equal(source.refs[3].read(), GREY[3]) and source.class_names == ["digits"]
    assert "no file of labels" in said[0]


def test_several_sets_are_told_apart_by_the_user(tmp_path):
    for part in ("letters-train", "digits-train"):
        mnist(tmp_path, part)
    with pytest.raises(DataError, match="several data sets"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "letters-train-images-idx3-ubyte")) == 11


BAD_IMAGES = [
    PLAIN[:-1],
    PLAIN + b"x",
    *(b"\0\0\10\3" + struct.pack(">3I", *of) for of in ((0, 8, 8), (4, 2**31, 2**31))),
    PLAIN[:12],
    gzip.compress(PLAIN)[:-9],
]
BAD_LABELS = [idx(NUMBERS[:3]), idx(NUMBERS)[:-1], PLAIN, b"text"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [("images-idx3", content) for content in BAD_IMAGES] + [("labels-idx1", content) for content in BAD_LABELS],
    ids=range(10),
)
def test_damaged_files_of_mnist_are_refused_and_named(tmp_path, kind, content):
    mnist(tmp_path)
    (tmp_path / f"train-{kind}-ubyte").write_bytes(content)
    with pytest.raises(ElboError, match=f"{kind}-ubyte.*(get it again|expected a whole number for each)"):
        open_source(tmp_path / "train-images-idx3-ubyte")


# Parquet

NAMES = ["ant", "hot dog", "bee"]


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


PNGS = list(map(png, ROWS))


def parquet(path, images, labels=None, names=None):
    """Write a file as Hugging Face's `datasets` does, in row groups of 4 rows, with a column of other numbers."""
    path.parent.mkdir(exist_ok=True, parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"width": pa.array([8] * len(images), pa.int64())}
    columns["image"] = pa.array([{"bytes": content, "path": "x.png"} for content in images], kind)
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value"}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    write_table(table, path, row_group_size=4)


@pytest.fixture
def folder(tmp_path):
    """A data set of two files for training and one for testing."""
    for name, part in (("train-0", slice(6)), ("train-1", slice(6, 10)), ("test-0", slice(10, None))):
        parquet(tmp_path / f"set/data/{name}.parquet", PNGS[part], LABELS[part], NAMES)
    (tmp_path / "set/README.md").write_text("A data set")
    return tmp_path / "set"


def test_training_images_of_parquet_are_read_in_any_order_with_the_names_of_their_classes(folder, tmp_path):
    data = packed(folder, tmp_path / "a.h5")
    assert np.array_equal(pixels(data), ROWS[:10])
    assert data.labels.tolist() == LABELS[:10] and data.class_names == NAMES
    assert files_of(data)[5:7] == ["train-0/5", "train-1/0"]
    refs = open_source(folder).refs
    assert [refs[row].read() for row in (7, 2, 2, 3, 9, 0)] == [PNGS[row] for row in (7, 2, 2, 3, 9, 0)]


def test_parquet_without_labels_or_names(tmp_path):
    parquet(tmp_path / "cats.parquet", PNGS)
    assert open_source(tmp_path / "cats.parquet").class_names == ["cats"]
    parquet(tmp_path / "x.parquet", PNGS, LABELS)
    source = open_source(tmp_path / "x.parquet")
    assert source.labels == LABELS and source.class_names == ["0", "1", "2"]


def test_a_row_without_an_image_is_a_bad_image(tmp_path):
    parquet(tmp_path / "x.parquet", [PNGS[0], None, PNGS[2]], [0, 1, 2], NAMES)
    with pytest.raises(DataError, match="x/1"):
        packed(tmp_path / "x.parquet", tmp_path / "a.h5")
    assert files_of(packed(tmp_path / "x.parquet", tmp_path / "a.h5", on_error="skip")) == ["x/0", "x/2"]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "usable"),
        (lambda path: path.write_bytes(path.read_bytes()[:12]), "usable"),
        (partial(parquet, images=[], labels=[], names=NAMES), "no files inside"),
        (partial(parquet, images=PNGS[:1], labels=[3], names=NAMES), "label 3"),
        (lambda path: parquet(path.with_name("y.parquet"), PNGS[:2], [0, -1], NAMES), "y/1: label -1"),
        (lambda path: write_table(pa.table({"text": ["a"], "label": [1]}), path), "no column of images"),
        (lambda path: parquet(path.with_name("y.parquet"), PNGS, LABELS, ["x", "y", "z"]), "other columns"),
        (lambda path: parquet(path.with_name("set") / "y.parquet", PNGS, LABELS, NAMES), "several data sets"),
    ],
)
def test_damaged_and_foreign_parquet_files_are_refused(tmp_path, make, word):
    parquet(tmp_path / "set/x.parquet", PNGS, LABELS, NAMES)
    make(tmp_path / "set/x.parquet")
    with pytest.raises((DataError, FormatError), match=word):
        open_source(tmp_path / "set")


def test_parquet_needs_pyarrow_and_is_unpacked_first(elbo, folder, tmp_path, monkeypatch):
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", folder, "."], check=True)
    with pytest.raises(FormatError, match="unpack"):
        open_source(tmp_path / "x.tar")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    done = elbo("prep", folder, "x.h5", cwd=tmp_path)
    assert done.returncode == 2 and b"pip install 'elbocli[parquet]'" in done.stderr
