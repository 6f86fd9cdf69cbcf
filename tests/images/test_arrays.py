"""Images that come as arrays: ADM's .npz, .npy, other datasets, samples."""

import numpy as np
import packing
import pytest
from packing import open_source

from elbocli.errors import DataError, FormatError
from elbocli.files.dataset import Dataset
from elbocli.files.sample_files import SamplesHeader, open_samples


def packed(source, out, **settings):
    packing.pack(source, out, **{"size": 8, **settings})
    return Dataset(out)


@pytest.fixture
def rows(images):
    return images(7)


LABELS = [2, 0, 2, 1, 0, 2, 2]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adms_batches(tmp_path, rows, save):
    save(tmp_path / "x.npz", arr_0=rows, arr_1=np.array(LABELS))
    data = packed(tmp_path / "x.npz", tmp_path / "x.h5", crop="none")
    assert np.array_equal(next(data.batches(10)), rows)
    assert data.labels.tolist() == LABELS and data.class_names == ["0", "1", "2"]
    assert data.contents()[1]["files"] == list("0123456")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_without_labels_it_is_one_class(tmp_path, rows, save):
    save(tmp_path / "cats.npz", rows)
    data = packed(tmp_path / "cats.npz", tmp_path / "x.h5")
    assert data.labels.tolist() == [0] * 7 and data.class_names == ["cats"]
    np.save(tmp_path / "cats.npy", rows)
    same = packed(tmp_path / "cats.npy", tmp_path / "y.h5")
    for key in ("payload_sha256", "source_sha256", "contents_sha256"):
        assert getattr(same.attributes, key) == getattr(data.attributes, key)


def test_labels_and_classes_from_files(tmp_path, rows):
    np.savez(tmp_path / "x.npz", arr_0=rows, arr_1=np.array(LABELS))
    (tmp_path / "names").write_text("airplane\nhot dog\ncat\n")
    assert open_source(tmp_path / "x.npz", classes=tmp_path / "names").class_names == ["airplane", "hot dog", "cat"]
    (tmp_path / "labels").write_text("b\na\nb\na\nb\na\nb\n")
    assert open_source(tmp_path / "x.npz", labels=tmp_path / "labels").labels == [1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_part_or_another_order_is_read(tmp_path, rows, save):
    save(tmp_path / "x.npz", arr_0=rows, arr_1=np.array(LABELS))
    part = packed(tmp_path / "x.npz", tmp_path / "val.h5", subset=("val", 0.5))
    kept = [int(name) for name in part.contents()[1]["files"]]
    assert 0 < len(kept) < 7 and np.array_equal(next(part.batches(10)), rows[kept])
    shuffled = packed(tmp_path / "x.npz", tmp_path / "y.h5", shuffle_seed=0)
    order = [int(name) for name in shuffled.contents()[1]["files"]]
    assert order != sorted(order) and np.array_equal(next(shuffled.batches(10)), rows[order])
    assert shuffled.labels.tolist() == [LABELS[index] for index in order]


def test_several_follow_each_other(tmp_path, rows):
    np.savez(tmp_path / "a.npz", arr_0=rows[:3], arr_1=np.array(LABELS[:3]))
    np.savez_compressed(tmp_path / "b.npz", arr_0=rows[3:], arr_1=np.array(LABELS[3:]))
    data = packed([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "x.h5")
    assert np.array_equal(next(data.batches(10)), rows) and data.labels.tolist() == LABELS
    assert data.contents()[1]["files"] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2", "b/3"]


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "holds float32"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, "expected uint8 .N, H, W, 1 or 3"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(3, int)}, "arr_1 is not usable"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(2)}, "arr_1 is not usable"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.array([0, -1])}, "classes of images are -1"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 3))}, "no images"),
    ],
)
def test_what_holds_no_images_or_labels_is_refused(tmp_path, arrays, complaint):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises((FormatError, DataError), match=complaint):
        open_source(tmp_path / "x.npz")


@pytest.mark.parametrize("store", ["raw", "png", "webp"])
def test_a_dataset_is_stored_otherwise_and_back(pack, tmp_path, rows, store):
    names = ("hot dog", "ant", "bee", "none")
    source = pack("x.h5", rows, LABELS, names)
    middle = packed(source, tmp_path / "middle.h5", store=store)
    back = packed(tmp_path / "middle.h5", tmp_path / "back.h5")
    assert middle.store == store
    for data in (middle, back):
        assert np.array_equal(next(data.batches(10)), rows)
        assert data.labels.tolist() == LABELS and data.class_names == list(names)
        assert data.contents()[1]["files"] == [f"{index}.png" for index in range(7)]
    assert back.attributes.payload_sha256 == Dataset(source).attributes.payload_sha256
    assert back.attributes.source_sha256 == middle.attributes.source_sha256


def test_a_dataset_is_resized_and_cut_down(pack, tmp_path, rows):
    source = pack("x.h5", rows, LABELS)
    (tmp_path / "classes").write_text("cat\nant\n")
    data = packed(source, tmp_path / "y.h5", size=4, classes=tmp_path / "classes", limit=4, channels=1)
    assert data.shape == (4, 4, 4, 1) and data.class_names == ["cat", "ant"]
    assert data.labels.tolist() == [0, 1, 0, 1] and data.contents()[1]["files"] == ["0.png", "1.png", "2.png", "4.png"]


def test_two_datasets_share_their_classes_by_name(pack, tmp_path, rows):
    first, second = pack("x.h5", rows, LABELS, ("cat", "ant", "bee")), pack("y.h5", rows, LABELS, ("bee", "dog", "ant"))
    source = open_source([first, second])
    names = [("cat", "ant", "bee")[label] for label in LABELS] + [("bee", "dog", "ant")[label] for label in LABELS]
    assert source.class_names == ["ant", "bee", "cat", "dog"]
    assert [source.class_names[label] for label in source.labels] == names


def test_samples_are_a_source(tmp_path, rows):
    plan = SamplesHeader(rows.shape, np.array(LABELS), np.arange(7), ["ant", "bee", "cat"], {"command": "elbo sample"})
    for name in ("x.h5", "x.npz"):
        with open_samples(tmp_path / name, plan) as sink:
            sink.put(rows)
            sink.finish()
        data = packed(tmp_path / name, tmp_path / f"from-{name[2:]}.h5")
        assert np.array_equal(next(data.batches(10)), rows) and data.labels.tolist() == LABELS
    assert Dataset(tmp_path / "from-h5.h5").class_names == ["ant", "bee", "cat"]
