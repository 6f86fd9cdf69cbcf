import json
import os
import time

import h5py
import numpy as np
import pytest
from made_data import rows_sha256

from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.dataset import ENCODED, IMAGES, BlockLayout, Dataset, DatasetWriter, find_dataset

# Reading


def test_pixels_labels_and_names_read_back(pack, images):
    rows = images(12)
    data = Dataset(pack(rows=rows, crop="center"))
    np.testing.assert_array_equal(data.batch(np.arange(12)), rows)
    np.testing.assert_array_equal(np.concatenate(list(data.batches(5))), rows)
    assert data.labels.tolist() == [i % 3 for i in range(12)]
    assert data.labels.dtype == np.int64
    assert data.class_names == ["ant", "bee", "cat"]
    assert (len(data), data.image_size, data.channels, data.num_classes) == (12, 8, 3, 3)
    assert (data.attributes.count, data.attributes.crop, data.attributes.head()["format"]) == (
        12,
        "center",
        "elbo-dataset",
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_in_the_order_asked_for_and_a_copy(pack, images, channels):
    rows = images(20, channels=channels)
    data = Dataset(pack(rows=rows))
    order = np.random.default_rng(0).integers(0, 20, 50)
    batch = data.batch(order)
    np.testing.assert_array_equal(batch, rows[order])
    batch[:] = 0
    np.testing.assert_array_equal(data.batch(order), rows[order])


def test_any_hdf5_tool_reads_it(pack, images):
    with h5py.File(pack(rows=images(12)), "r") as file:
        np.testing.assert_array_equal(file["images"][()], images(12))
        assert file["images"].chunks is None
        assert [name.decode() for name in file["files"][:2]] == ["0.png", "1.png"]


def test_an_attribute_may_be_long(pack):
    """A command that lists 8000 classes, within JSON that must stay whole."""
    long = json.dumps({"command": "elbo sample " + "7é," * 200_000})
    data = Dataset(pack(samples=long, zebra="last"))
    assert (data.attributes.samples, data.attributes.more["zebra"]) == (long, "last")
    assert data.contents_digest() == data.attributes.contents_sha256


def test_an_attribute_of_any_type_differs_from_its_digest(pack):
    path = pack()
    with h5py.File(path, "r+") as file:
        file.attrs["zebra"] = h5py.Empty("f4")
        file.attrs["more"] = np.void(b"abc")
    data = Dataset(path)
    assert data.contents_digest() != data.attributes.contents_sha256


def test_a_disk_too_full_for_an_attribute_is_said(small_disk, images):
    rows = images(2)
    with (
        pytest.raises(DataError, match=r"x\.h5: could not write: "),
        DatasetWriter(small_disk / "x.h5", BlockLayout(IMAGES, rows.shape[1:]), 2, "test").held() as writer,
    ):
        writer.append(rows, 2, {})
        writer.finish({"labels": np.zeros(2, np.int64)}, {"class_names": ["all"]}, {"command": "x" * 1_000_000})


def test_the_digest_is_of_the_pixels_and_matches_the_attribute(pack):
    data = Dataset(pack())
    assert rows_sha256(data.pieces()) == data.attributes.payload_sha256
    assert rows_sha256([data.batch(np.arange(5)), data.batch(np.arange(5, 12))]) == data.attributes.payload_sha256


def test_one_changed_pixel_changes_the_digest(pack):
    path = pack()
    with h5py.File(path, "r+") as file:
        file["images"][3, 2, 1, 0] ^= 1
    data = Dataset(path)
    assert rows_sha256(data.pieces()) != data.attributes.payload_sha256


def foreign(path, images, **options):
    """A file in our schema as another tool would write it."""
    with h5py.File(path, "w") as file:
        file["labels"] = np.arange(len(images), dtype=np.int64) % 2
        file.attrs.update({"format": "elbo-dataset", "version": 1})
        file.create_dataset("images", data=images, **options)
    return path


@pytest.mark.parametrize("options", [{"chunks": (2, 8, 8, 3)}, {"chunks": (2, 8, 8, 3), "compression": "gzip"}, {}])
def test_other_layouts_read_the_same(tmp_path, images, options):
    rows = images(10)
    data = Dataset(foreign(tmp_path / "x.h5", rows, **options))
    order = np.array([7, 0, 7, 3])
    np.testing.assert_array_equal(data.batch(order), rows[order])
    assert (data.class_names, data.num_classes) == ([], 2)


# Refusing


def change(path, work):
    with h5py.File(path, "r+") as file:
        work(file)
    return path


def replace(name, make):
    def work(file):
        del file[name]
        make(file)

    return work


REFUSED = {
    "another format": (lambda f: f.attrs.__setitem__("format", "other"), "format is 'other'"),
    "no format": (lambda f: f.attrs.__delitem__("format"), "format is None"),
    "no such version": (lambda f: f.attrs.__setitem__("version", 0), "version 0"),
    "no images": (lambda f: f.__delitem__("images"), "no dataset 'images'"),
    "no labels": (lambda f: f.__delitem__("labels"), "no dataset 'labels'"),
    "float images": (
        replace("images", lambda f: f.create_dataset("images", data=np.zeros((12, 8, 8, 3)))),
        "expected uint8",
    ),
    "flat images": (
        replace("images", lambda f: f.create_dataset("images", data=np.zeros((12, 192), "u1"))),
        "expected uint8",
    ),
    "four channels": (
        replace("images", lambda f: f.create_dataset("images", data=np.zeros((12, 8, 8, 4), "u1"))),
        "1 or 3",
    ),
    "no rows": (replace("images", lambda f: f.create_dataset("images", data=np.zeros((0, 8, 8, 3), "u1"))), "N > 0"),
    "a group for images": (replace("images", lambda f: f.create_group("images")), "of its own"),
    "too few labels": (
        replace("labels", lambda f: f.create_dataset("labels", data=np.zeros(11, "i8"))),
        "labels",
    ),
    "float labels": (replace("labels", lambda f: f.create_dataset("labels", data=np.zeros(12))), "labels"),
    "a negative label": (
        replace("labels", lambda f: f.create_dataset("labels", data=np.full(12, -1))),
        "labels",
    ),
    "a label beyond int64": (
        replace("labels", lambda f: f.create_dataset("labels", data=np.full(12, 2**64 - 1, "u8"))),
        "labels",
    ),
    "a link to another file": (
        replace("images", lambda f: f.__setitem__("images", h5py.ExternalLink("/etc/passwd", "/x"))),
        "link",
    ),
    "a link inside": (lambda f: (f.move("labels", "other"), f.__setitem__("labels", h5py.SoftLink("/other"))), "link"),
    "labels in another file": (
        replace("labels", lambda f: f.__setitem__("labels", h5py.ExternalLink("x.h5", "/labels"))),
        "link",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(pack, what):
    work, message = REFUSED[what]
    path = change(pack(), work)
    with pytest.raises(FormatError, match=f"data.h5: .*{message}"):
        Dataset(path)


def test_pixels_kept_in_another_file_are_refused(pack, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(12 * 192))
    options = {"shape": (12, 8, 8, 3), "dtype": "u1", "external": [(str(secret), 0, 12 * 192)]}
    path = change(pack(), replace("images", lambda f: f.create_dataset("images", **options)))
    with pytest.raises(FormatError, match="of its own"):
        Dataset(path)


def test_a_virtual_dataset_is_refused(pack):
    def make(file):
        layout = h5py.VirtualLayout((12, 8, 8, 3), "u1")
        layout[:] = h5py.VirtualSource("other.h5", "images", (12, 8, 8, 3))
        file.create_virtual_dataset("images", layout)

    with pytest.raises(FormatError, match="of its own"):
        Dataset(change(pack(), replace("images", make)))


def test_labels_are_bounded_by_the_number_of_classes_alone(pack, images):
    """ImageNet-21k's shards have more classes than images."""
    names = [f"n{number:08d}" for number in range(21_841)]
    labels = [21_840, 0, 3]
    assert Dataset(pack("many.h5", images(3), labels, names)).labels.tolist() == labels
    with pytest.raises(FormatError, match=r"few\.h5: 'labels'"):
        Dataset(pack("few.h5", images(3), [0, 1, 3], names[:3]))


def test_what_is_no_hdf5_file_is_named_for_what_it_is(tmp_path):
    with pytest.raises(FormatError, match="no such dataset"):
        Dataset(tmp_path / "gone.h5")
    with pytest.raises(FormatError, match="an empty folder, not a dataset"):
        Dataset(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(FormatError, match=r"text\.h5: a file that is none of elbo.s, not a dataset"):
        Dataset(tmp_path / "text.h5")


def test_a_file_cut_short_anywhere_is_refused(pack):
    path = pack()
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, 500, 2047, 2048, 2049, 3000, len(whole) - 500, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            Dataset(path)


def test_pixels_cut_short_behind_a_whole_header_are_refused(tmp_path, images):
    """HDF5 itself doesn't notice when the end-of-file mark is changed too."""
    path = foreign(tmp_path / "x.h5", images(12))
    with h5py.File(path, "r") as file:
        offset = file["images"].id.get_offset()
    assert offset is not None
    content = bytearray(path.read_bytes())
    end = offset + 100
    at = content.index(len(content).to_bytes(8, "little"), 0, 64)
    content[at : at + 8] = end.to_bytes(8, "little")
    path.write_bytes(content[:end])
    with pytest.raises(FormatError, match=r"x\.h5"):
        Dataset(path)


@pytest.mark.parametrize("mark", [b"TREE", b"SNOD", b"HEAP", b"GCOL"])
def test_damage_inside_the_file_is_called_damage(pack, mark):
    """An overwritten block of HDF5's own, as after a bad copy."""
    path = pack()
    content = path.read_bytes()
    assert mark in content
    path.write_bytes(content.replace(mark, b"\0\0\0\0"))
    with pytest.raises(FormatError, match=r"data\.h5"):
        Dataset(path)


def test_damage_in_a_compressed_block_is_called_damage(tmp_path, images):
    """A chunk that doesn't unpack."""
    rows = images(12) // 64
    path = foreign(tmp_path / "x.h5", rows, chunks=(4, 8, 8, 3), compression="gzip")
    with h5py.File(path, "r") as file:
        place = file["images"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + 10 : place.byte_offset + place.size] = bytes(place.size - 10)
    path.write_bytes(content)
    with pytest.raises(ElboError, match=r"x\.h5"):
        Dataset(path)


# Finding


def test_the_only_dataset_of_a_folder_is_found(pack, tmp_path):
    path = pack()
    foreign_file = tmp_path / "other.h5"
    with h5py.File(foreign_file, "w") as file:
        file["x"] = 1
    assert find_dataset(tmp_path).name == path.name


def test_no_dataset_or_two_are_refused(pack, tmp_path):
    with pytest.raises(DataError, match="0 datasets here"):
        find_dataset(tmp_path)
    pack("one.h5")
    pack("two.h5")
    with pytest.raises(DataError, match="2 datasets"):
        find_dataset(tmp_path)


# Writing


def write(path, rows, source="s", limit=None, step=5):
    with DatasetWriter(path, BlockLayout(IMAGES, rows.shape[1:]), limit or len(rows), source).held() as writer:
        for start in range(writer.rows, len(rows), step):
            part = rows[start : start + step]
            writer.append(part, start + len(part), {"last": start})
        writer.finish({"labels": np.zeros(len(rows), np.int64)}, {"class_names": ["a"]}, {"image_size": rows.shape[1]})


def test_nothing_is_left_beside_a_finished_file(tmp_path, images):
    write(tmp_path / "out.h5", images(23))
    assert os.listdir(tmp_path) == ["out.h5"]


def test_the_same_rows_give_the_same_bytes(tmp_path, images):
    write(tmp_path / "a.h5", images(23), step=23)
    time.sleep(1.1)  # HDF5 notes times in seconds
    write(tmp_path / "b.h5", images(23), step=1)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_fewer_rows_than_claimed_make_a_file_of_just_those(tmp_path, images):
    write(tmp_path / "out.h5", images(7), limit=50)
    write(tmp_path / "exact.h5", images(7))
    np.testing.assert_array_equal(Dataset(tmp_path / "out.h5").batch(np.arange(7)), images(7))
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "exact.h5").read_bytes()


def test_the_file_has_no_name_before_it_is_finished(tmp_path, images):
    path = tmp_path / "out.h5"
    with DatasetWriter(path, BlockLayout(IMAGES, (8, 8, 3)), 12, "s").held() as writer:
        writer.append(images(12), 12, {})
        assert not path.exists()
        assert (tmp_path / "out.h5.partial").exists()


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path, images):
    path = tmp_path / "out.h5"
    with DatasetWriter(path, BlockLayout(IMAGES, (8, 8, 3)), 12, "s").held() as writer:
        writer.append(images(12)[:6], 6, {})
        with (
            pytest.raises(DataError, match="another elbo process"),
            DatasetWriter(path, BlockLayout(IMAGES, (8, 8, 3)), 12, "s").held(),
        ):
            pass
        writer.append(images(12)[6:], 12, {})
        writer.finish({"labels": np.zeros(12, np.int64)}, {}, {})
    np.testing.assert_array_equal(Dataset(path).batch(np.arange(12)), images(12))


def test_an_unfinished_file_of_another_source_is_refused_and_kept_unless_overwritten(tmp_path, images):
    path, layout = tmp_path / "out.h5", BlockLayout(IMAGES, (8, 8, 3))
    with DatasetWriter(path, layout, 12, "one").held() as writer:
        writer.append(images(12)[:6], 6, {})
    with pytest.raises(UsageError, match="unfinished"), DatasetWriter(path, layout, 12, "two").held():
        pass
    with DatasetWriter(path, layout, 12, "one").held() as writer:
        assert (writer.rows, writer.state.done) == (6, 6)
    with DatasetWriter(path, layout, 12, "two").held(overwrite=True) as writer:
        assert (writer.rows, writer.state.done) == (0, 0)


def test_notes_come_back_with_the_rows(tmp_path, images):
    path = tmp_path / "out.h5"
    with DatasetWriter(path, BlockLayout(IMAGES, (8, 8, 3)), 12, "s").held() as writer:
        writer.append(images(12)[:6], 9, {"skipped": {"2": "why"}})
    with DatasetWriter(path, BlockLayout(IMAGES, (8, 8, 3)), 12, "s").held() as writer:
        state = writer.state
    assert (state.rows, state.bytes, state.done, state.notes) == (6, 1152, 9, {"skipped": {"2": "why"}})


def test_a_journal_without_its_rows_is_not_believed(tmp_path, images):
    path = tmp_path / "out.h5"
    (tmp_path / "out.h5.partial.json").write_text(
        json.dumps({"source": "s", "rows": 6, "bytes": 1152, "done": 6, "notes": {}})
    )
    write(path, images(12))
    np.testing.assert_array_equal(Dataset(path).batch(np.arange(12)), images(12))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("change", [cut, zeroed, flipped])
@pytest.mark.parametrize("harmed", [".partial", ".partial.runs"])
def test_rows_that_are_not_what_the_journal_says_are_written_again(tmp_path, images, harmed, change):
    layout = BlockLayout(IMAGES, (8, 8, 3)) if harmed == ".partial" else BlockLayout(ENCODED, (), 192)
    rows = images(12) if harmed == ".partial" else [row.tobytes() for row in images(12)]
    contents = []
    for name in ("whole.h5", "out.h5"):
        path = tmp_path / name
        with DatasetWriter(path, layout, 8, "s").held() as writer:
            writer.append(rows[:8], 8, {})
        if name == "out.h5":
            change(path.with_name(name + harmed))
        with DatasetWriter(path, layout, 12, "s").held() as writer:
            assert writer.state.done == (0 if name == "out.h5" else 8)
            writer.append(rows[writer.rows :], 12, {})
            about = {"store": "png", "image_size": 8, "channels": 3}
            writer.finish({"labels": np.zeros(12, np.int64)}, {"class_names": ["all"]}, about)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_a_journal_that_was_not_believed_is_gone_before_the_disk_is_claimed(tmp_path, images, monkeypatch):
    path = tmp_path / "out.h5"
    with DatasetWriter(path, BlockLayout(IMAGES, (8, 8, 3)), 12, "s").held() as writer:
        writer.append(images(12)[:8], 8, {})
    cut(tmp_path / "out.h5.partial")
    claimed = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: claimed.append(os.listdir(tmp_path)))
    with DatasetWriter(path, BlockLayout(IMAGES, (8, 8, 3)), 12, "s").held():
        pass
    assert sorted(claimed[0]) == ["out.h5.partial"]


def test_a_full_disk_fails_before_the_first_image_and_leaves_nothing(small_disk):
    with (
        pytest.raises(DataError, match=r"out\.h5: could not claim \d+ bytes: No space left"),
        DatasetWriter(small_disk / "out.h5", BlockLayout(IMAGES, (64, 64, 3)), 1000, "s").held(),
    ):
        pytest.fail("the disk is too small for this")
    assert os.listdir(small_disk) == []


def test_a_refused_writer_closes_what_it_opened(small_disk):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with (
            pytest.raises(DataError, match="No space left"),
            DatasetWriter(small_disk / "out.h5", BlockLayout(IMAGES, (64, 64, 3)), 1000, "s").held(),
        ):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_unfinished_file_survives_a_full_disk(small_disk, images):
    path = small_disk / "out.h5"
    rows = images(400, 16)
    with DatasetWriter(path, BlockLayout(IMAGES, (16, 16, 3)), 400, "s").held() as writer:
        writer.append(rows[:100], 100, {})
    filler = small_disk / "filler"
    with open(small_disk / "out.h5.partial", "r+b") as file:
        file.truncate(2048 + 100 * 768)
    with pytest.raises(OSError, match="No space"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with (
        pytest.raises(DataError, match="No space left"),
        DatasetWriter(path, BlockLayout(IMAGES, (16, 16, 3)), 400, "s").held(),
    ):
        pass
    filler.unlink()
    write(path, rows, step=100)
    np.testing.assert_array_equal(Dataset(path).batch(np.arange(400)), rows)
    path.unlink()


DRIVER = """
import random, time
import numpy as np
from elbocli.files.dataset import DatasetWriter
from elbocli.files.dataset import IMAGES, BlockLayout

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
SHAPE, N = (16, 16, 3), 700
bad = set(random.Random(seed).sample(range(N), 9))

rows = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)

def work(out, step):
    with DatasetWriter(out, BlockLayout(IMAGES, SHAPE), N, "source").held() as writer:
        skipped = list(writer.state.notes.get("skipped", []))
        for start in range(writer.state.done, N, step):
            part = [i for i in range(start, min(start + step, N))]
            skipped += [i for i in part if i in bad]
            writer.append(rows[[i for i in part if i not in bad]], part[-1] + 1, {"skipped": skipped})
        labels = np.array([i for i in range(N) if i not in bad])
        writer.finish({"labels": 0 * labels}, {"class_names": ["a"], "files": [f"{i}.png" for i in labels]}, {"skipped": len(skipped)})

whole = folder / "whole.h5"
work(whole, 64)
want = whole.read_bytes()
"""

RANDOM_KILLS = (
    DRIVER
    + """
begun = time.monotonic()
work(folder / "again.h5", 32)
span = time.monotonic() - begun
kills = trial = 0
while trial < 12 or kills < 12:
    trial += 1
    assert trial < 200
    out, tries, killed = folder / f"{trial}.h5", 0, True
    while killed:
        pid = os.fork()
        if pid == 0:
            work(out, 32)
            os._exit(0)
        if tries < 4:
            time.sleep(random.uniform(0, 0.8 * span))
            os.kill(pid, 9)
        killed = os.waitpid(pid, 0)[1] == 9
        kills, tries = kills + killed, tries + 1
        if out.exists():
            break
    assert out.read_bytes() == want, trial
    if not killed:
        assert not list(folder.glob(f"{trial}.h5.*")), trial
    for left in folder.glob(f"{trial}.h5*"):
        left.unlink()
print(kills)
"""
)


def test_killed_at_random_moments_and_resumed_the_bytes_are_the_same(tmp_path, crashes):
    assert int(crashes(RANDOM_KILLS, tmp_path, 0)) >= 12


EVERY_KILL = (
    DRIVER
    + """
k, stride, out = 0, int(sys.argv[3]), folder / "out.h5"
while True:
    died = crashed(lambda: work(out, 250), k)
    if not out.exists():
        work(out, 250)
    assert out.read_bytes() == want, k
    if not died:
        break
    for left in folder.glob("out.h5*"):
        left.unlink()
    k += stride
print(k)
"""
)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_its_steps_and_resumed_the_bytes_are_the_same(tmp_path, crashes, stride):
    assert int(crashes(EVERY_KILL, tmp_path, 1, stride, timeout=300)) >= 40
