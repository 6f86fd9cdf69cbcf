"""Samples are written and read in every form; a killed writer's file is gone on with, and damaged files are refused."""

import io
import os
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elbocli.data.samples import read_samples
from elbocli.data.sources import open_source
from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.contact_sheet import draw_contact_sheet, lay_out, rows_of_classes
from elbocli.files.dataset import Dataset
from elbocli.files.sample_files import SamplesHeader, open_samples

LABELS = np.arange(11) % 3
ABOUT = {"command": "elbo sample run", "seed": 3}
FILES = pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x.png", "x"])
READABLE = pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x"])


def plan(rows, labels=LABELS, about=ABOUT, scale=0):
    return SamplesHeader(rows.shape, labels, np.arange(len(rows)), ["ant", "bee", "cat"], about, scale)


def write(target, rows, labels=LABELS, overwrite=False, scale=0):
    with open_samples(target, plan(rows, labels, scale=scale), overwrite) as sink:
        for start in range(sink.done, len(rows), 4):
            sink.put(rows[start : start + 4])
        sink.finish(lambda: None)


def read(source, size=3):
    with read_samples(source) as reader:
        count = reader.shape[0]
        return np.concatenate([reader.at(start, min(size, count - start)) for start in range(0, count, size)])


def content(path):
    """All bytes of a file or folder, by name."""
    return {file.name: file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])}


@pytest.fixture
def rows(images):
    return images(11)


# Round trips


@pytest.mark.parametrize("channels", [1, 3])
@READABLE
def test_images_labels_and_words_are_read_as_written(tmp_path, images, name, channels):
    rows = images(11, 8, channels)
    write(tmp_path / name, rows)
    assert os.listdir(tmp_path) == [name]
    np.testing.assert_array_equal(read(tmp_path / name), rows)
    with read_samples(tmp_path / name) as reader:
        assert reader.shape == rows.shape
        np.testing.assert_array_equal(reader.at(2, 3), rows[2:5])  # parts may be left out, as processes do
        np.testing.assert_array_equal(reader.at(8, 1), rows[8:9])
        if name in ("x.npz", "x.h5"):
            assert reader.labels.dtype == np.int64 and reader.labels.tolist() == LABELS.tolist()
            assert reader.made.json() == {"version": 1, **ABOUT}


@pytest.mark.parametrize("name", ["x.npz", "x.h5"])
def test_samples_without_labels_have_none_and_those_of_the_first_class_have_some(tmp_path, rows, name):
    for labels in (None, 0 * LABELS):
        write(tmp_path / name, rows, labels, overwrite=True)
        with read_samples(tmp_path / name) as reader:
            assert (reader.labels is None) == (labels is None)
            assert reader.class_names == (["ant", "bee", "cat"] if labels is not None and name == "x.h5" else [])


def test_numpy_and_elbo_datasets_read_the_files(tmp_path, rows):
    for name in ("x.npy", "x.npz", "x.h5"):
        write(tmp_path / name, rows)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
    with np.load(tmp_path / "x.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], rows)
        np.testing.assert_array_equal(archive["arr_1"], LABELS)
    source = open_source([tmp_path / "x.h5"])
    assert source.class_names == ["ant", "bee", "cat"] and source.files[-1] == "10"
    assert Dataset(tmp_path / "x.h5").attributes.command == "elbo sample run"


class Drip(io.BytesIO):
    """A stream whose write() takes seven bytes at most."""

    def write(self, data):
        return super().write(data[:7])


def test_a_stream_is_numpys_file_and_read_no_further_than_asked(rows, npy):
    stream = Drip()
    write(stream, rows)
    assert stream.getvalue() == npy(rows)
    stream.seek(0)
    with read_samples(stream) as reader:
        assert (reader.name, reader.labels) == ("standard input", None)
        np.testing.assert_array_equal(reader.at(0, 2), rows[:2])
        assert stream.tell() == 128 + 2 * 192


def test_a_pipe_with_a_name_is_read(rows, npy):
    reader, writer = os.pipe()
    os.write(writer, npy(rows))
    os.close(writer)
    np.testing.assert_array_equal(read(Path(f"/dev/fd/{reader}")), rows)
    os.close(reader)


def test_a_folder_has_the_images_in_order_and_stays_colour_when_the_first_is_grey(tmp_path, images, monkeypatch):
    rows = images(12)
    said = []
    rows[0] = 255
    monkeypatch.setattr("elbocli.files.sample_files.progress", lambda done, *_: said.append(done))
    write(tmp_path / "x", rows, None)
    assert said == [*range(1, 13)]
    np.testing.assert_array_equal(read(tmp_path / "x"), rows)


def test_a_png_is_the_grid_by_class_whose_scale_may_change_before_it_is_gone_on_with(tmp_path, rows):
    with open_samples(tmp_path / "x.png", plan(rows, scale=2)) as sink:
        sink.put(rows)
    write(tmp_path / "x.png", rows, scale=3)
    layout = lay_out(8, 8, rows_of_classes(11, LABELS, ["ant", "bee", "cat"]), 3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(draw_contact_sheet(rows, layout)))


# Writing with care


@FILES
def test_short_writes_change_no_byte(tmp_path, rows, name, monkeypatch):
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / name, rows)
    for function in ("write", "pwrite"):
        real = getattr(os, function)
        monkeypatch.setattr(os, function, lambda handle, data, *at, real=real: real(handle, data[:7], *at))
    write(tmp_path / name, rows)
    assert content(tmp_path / name) == content(tmp_path / "whole" / name)


@FILES
def test_an_existing_target_is_refused_before_anything_is_drawn_and_replaced_on_request(tmp_path, images, name):
    write(tmp_path / name, images(11, seed=1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="--overwrite"), open_samples(tmp_path / name, plan(images(11))):
        pytest.fail("the block must not be entered")
    assert sorted(tmp_path.rglob("*")) == before
    write(tmp_path / name, images(11, seed=2), overwrite=True)
    if name != "x.png":
        np.testing.assert_array_equal(read(tmp_path / name), images(11, seed=2))


@FILES
def test_a_failure_half_way_leaves_no_target_and_is_gone_on_with(tmp_path, rows, name):
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / name, rows)
    for expected in (0, 4):
        with pytest.raises(RuntimeError), open_samples(tmp_path / name, plan(rows)) as sink:
            assert sink.done == expected
            sink.put(rows[sink.done :][:4])
            raise RuntimeError
        assert not (tmp_path / name).exists()
    write(tmp_path / name, rows)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "whole"])
    assert content(tmp_path / name) == content(tmp_path / "whole" / name)


@FILES
def test_an_unfinished_file_of_other_settings_is_refused_with_the_difference(tmp_path, images, name):
    def half(about, overwrite=False):
        rows = images(11)
        with open_samples(tmp_path / name, plan(rows, None, about), overwrite) as sink:
            sink.put(rows[sink.done : sink.done + 4])
            return sink.done

    assert half(ABOUT) == 4
    with pytest.raises(UsageError, match="seed, threshold;"):
        half({**ABOUT, "seed": 4, "threshold": 1.5})
    assert half({**ABOUT, "command": "elbo sample ../run"}, overwrite=True) == 8, "the same settings go on in any case"
    assert half({**ABOUT, "seed": 4}, overwrite=True) == 4


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("name", ["x", "x.png"])
def test_the_disk_is_claimed_for_pictures_too(tmp_path, images, name, size):
    rows = images(5, size)  # noise, which PNG can only make larger
    with open_samples(tmp_path / name, plan(rows, None)) as sink:
        claimed = (tmp_path / f"{name}.partial").stat().st_size
        sink.put(rows)
        sink.finish(lambda: None)
    blocks = sum(-(-len(data) // 4096) * 4096 for data in content(tmp_path / name).values())
    assert rows.nbytes + blocks <= claimed <= 3 * rows.nbytes + 5 * 8192


def test_a_file_finished_while_its_lock_was_waited_for_is_refused(tmp_path, rows, monkeypatch):
    first = ExitStack()
    sink = first.enter_context(open_samples(tmp_path / "x.npz", plan(rows)))
    sink.put(rows)

    def finish(seconds):
        sink.finish(lambda: None)
        first.close()

    monkeypatch.setattr("elbocli.files.atomic.time.sleep", finish)
    with pytest.raises(UsageError, match="already"), open_samples(tmp_path / "x.npz", plan(rows), wait=60):
        pytest.fail("the block must not be entered")
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.mark.parametrize(
    ("name", "scale", "word"),
    [("x.jpg", 0, ".jpg"), ("x.png", 2000, "--zoom"), *((name, 2, "--zoom") for name in ("x", "x.npz", "x.h5", None))],
)
def test_other_suffixes_and_scales_are_refused(tmp_path, rows, name, scale, word):
    target = tmp_path / name if name else io.BytesIO()
    with pytest.raises(UsageError, match=word), open_samples(target, plan(rows, scale=scale)):
        pytest.fail("the block must not be entered")
    assert not list(tmp_path.iterdir())


# Reading with suspicion


def test_images_behind_the_array_are_not_left_out_in_silence(rows, npy, tmp_path):
    (tmp_path / "two.npy").write_bytes(2 * npy(rows))
    for source in (io.BytesIO(2 * npy(rows)), tmp_path / "two.npy"):
        with pytest.raises(ElboError, match="more bytes"), read_samples(source) as reader:
            reader.at(0, len(rows))
    with pytest.raises(ElboError, match="more bytes"):
        open_source([tmp_path / "two.npy"])


def test_a_stream_cut_short_says_how_many_came(rows, npy):
    for kept in (0, 1, 4, 10):
        with pytest.raises(DataError, match=f"after {kept} of 11"):
            read(io.BytesIO(npy(rows)[: 128 + kept * 192 + 100]))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, rows, name):
    write(tmp_path / name, rows, None)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 5, 6, 9, 60, 127, 128, 200, 1000, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ElboError, match=name):
            read(tmp_path / name)


def header(shape, text="{{'descr': '|u1', 'fortran_order': False, 'shape': {}}}"):
    text = text.format(shape).ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(1000)


@pytest.mark.parametrize(
    "data",
    [header(shape) for shape in ((8, 8, 3), (3, 8, 8, 4), (0, 8, 8, 3), ())]
    + [header((3, 8, 8, 3)).replace(b"|u1", b"|i1"), header((3, 8, 8, 3)).replace(b"False", b"True ")],
    ids=range(6),
)
def test_arrays_of_other_shapes_types_and_orders_are_refused(data):
    with pytest.raises(FormatError, match="expected uint8"):
        read(io.BytesIO(data))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"hello", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(200)),
        *(header("", text) for text in ("(1, 2", "'''", "__import__('os').getcwd()")),
        *(header((2, side, side, 3)) for side in (10**6, 10**12)),
    ],
    ids=range(9),
)
def test_a_bad_header_is_refused_before_memory_is_taken(data):
    with pytest.raises(ElboError, match="standard input"):
        read(io.BytesIO(data))


@pytest.mark.parametrize("about", [np.array("{"), np.array("[1]"), np.arange(3), np.array('{"made": Infinity}')])
def test_an_npz_whose_about_is_nonsense_is_refused(tmp_path, rows, about):
    np.savez(tmp_path / "x.npz", arr_0=rows, about=about)
    with pytest.raises(FormatError, match="about"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("member", [0, 1])
def test_a_compressed_npz_is_read_and_a_damaged_one_named(tmp_path, images, save, member):
    path = tmp_path / "x.npz"
    save(path, images(500), np.arange(500))
    np.testing.assert_array_equal(read(path, size=64), images(500))
    with zipfile.ZipFile(path) as archive:
        info = archive.infolist()[member]
    damaged = bytearray(path.read_bytes())
    damaged[info.header_offset + 60 + info.compress_size // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ElboError, match=r"x\.npz"):
        read(path, size=64)


@pytest.mark.parametrize("name", ["gone.npy", "gone.npz", "gone.h5", "text.npz", "empty"])
def test_no_samples_are_named(tmp_path, name):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ElboError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda folder: Image.new("RGB", (8, 9)).save(folder / "b.png"), "b.png"),
        (lambda folder: Image.new("L", (8, 8)).save(folder / "b.png"), "b.png"),
        (lambda folder: (folder / "c.png").write_bytes(b"no image"), "c.png"),
        (lambda folder: os.mkfifo(folder / "0.png"), "0.png"),
    ],
)
def test_a_bad_image_in_a_folder_is_named(tmp_path, damage, name):
    for each in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{each}.png")
    damage(tmp_path)
    with pytest.raises(DataError, match=name):
        read(tmp_path)
