import io
import os
import pty
import warnings
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from made_data import rows_sha256
from PIL import Image

from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.grid import draw_grid, lay_out, rows_of_classes
from elbocli.files.sample_files import SamplesHeader, npy_header, open_samples
from elbocli.images.samples import read_samples, refuse_terminal

LABELS = np.arange(11) % 3


def plan(rows, labels=LABELS):
    return SamplesHeader(
        rows.shape, labels, np.arange(len(rows)), ["ant", "bee", "cat"], {"command": "elbo sample run", "seed": 3}
    )


def write(target, rows, labels=LABELS, overwrite=False, step=4):
    with open_samples(target, plan(rows, labels), overwrite) as sink:
        for start in range(sink.done, len(rows), step):
            sink.put(rows[start : start + step])
        sink.finish()


def read(source, size=3):
    with read_samples(source) as reader:
        return reader, np.concatenate(
            [reader.at(start, min(size, reader.shape[0] - start)) for start in range(0, reader.shape[0], size)]
        )


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def rows(request, images):
    return images(11, 8, request.param)


# Round trips


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x"])
def test_an_unfinished_file_that_was_harmed_is_drawn_again(tmp_path, rows, name):
    with open_samples(tmp_path / name, plan(rows)) as sink:
        sink.put(rows[:8])
    partial = tmp_path / f"{name}.partial"
    partial.write_bytes(bytes(partial.stat().st_size))
    with open_samples(tmp_path / name, plan(rows)) as sink:
        assert sink.done == 0
        sink.put(rows)
        sink.finish()
    np.testing.assert_array_equal(read(tmp_path / name)[1], rows)


def test_a_pipe_with_a_name_is_read(tmp_path, rows):
    write(tmp_path / "x.npy", rows)
    reader, writer = os.pipe()
    os.write(writer, (tmp_path / "x.npy").read_bytes())
    os.close(writer)
    np.testing.assert_array_equal(read(Path(f"/dev/fd/{reader}"))[1], rows)
    os.close(reader)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x", "x.png"])
def test_short_writes_change_no_byte(tmp_path, rows, name, monkeypatch):
    def content(path):
        return [each.read_bytes() for each in (sorted(path.iterdir()) if path.is_dir() else [path])]

    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / name, rows)
    for function in ("write", "pwrite"):
        real = getattr(os, function)
        monkeypatch.setattr(os, function, lambda handle, data, *at, real=real: real(handle, data[:7], *at))
    write(tmp_path / name, rows)
    assert content(tmp_path / name) == content(tmp_path / "whole" / name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x"])
def test_what_is_written_is_read(tmp_path, rows, name):
    write(tmp_path / name, rows)
    reader, found = read(tmp_path / name)
    assert reader.shape == rows.shape
    np.testing.assert_array_equal(found, rows)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "packed.npz", "x.h5", "x"])
def test_parts_may_be_left_out(tmp_path, rows, name):
    """As processes do that share them."""
    if name == "packed.npz":
        np.savez_compressed(tmp_path / name, rows)
    else:
        write(tmp_path / name, rows)
    with read_samples(tmp_path / name) as reader:
        np.testing.assert_array_equal(reader.at(2, 3), rows[2:5])
        np.testing.assert_array_equal(reader.at(8, 1), rows[8:9])


def test_a_stream_is_read_as_it_is_written(rows):
    stream = io.BytesIO()
    write(stream, rows)
    stream.seek(0)
    reader, found = read(stream)
    assert (reader.name, reader.labels) == ("standard input", None)
    np.testing.assert_array_equal(found, rows)


def test_a_stream_passes_a_pipe_that_gives_little_at_a_time(images):
    rows = images(30, 16)
    out, into = os.pipe()
    if os.fork() == 0:
        os.close(out)
        with suppress(BaseException), open(into, "wb") as file:
            write(file, rows, None, step=1)
        os._exit(0)
    os.close(into)
    with open(out, "rb") as file:
        np.testing.assert_array_equal(read(file, size=7)[1], rows)
    os.wait()


@pytest.mark.parametrize("name", ["x.npz", "x.h5"])
def test_labels_come_along(tmp_path, rows, name):
    write(tmp_path / name, rows)
    labels = read(tmp_path / name)[0].labels
    assert labels.tolist() == LABELS.tolist()
    assert labels.dtype == np.int64


def test_numpy_reads_what_is_written(tmp_path, rows):
    write(tmp_path / "x.npy", rows)
    write(tmp_path / "x.npz", rows)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
    with np.load(tmp_path / "x.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], rows)
        np.testing.assert_array_equal(archive["arr_1"], LABELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, rows, save):
    save(tmp_path / "x.npz", rows, LABELS)
    reader, found = read(tmp_path / "x.npz")
    np.testing.assert_array_equal(found, rows)
    assert reader.labels.tolist() == LABELS.tolist()


def test_a_shape_of_true_is_one_of_ones(tmp_path):
    """numpy's reader takes True for a whole number."""
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (True, True, True, True)}".ljust(117) + "\n"
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + b"\7")
    assert read(path)[1].tolist() == [[[[7]]]]


@pytest.mark.parametrize("name", ["x.npz", "x.h5"])
def test_samples_without_labels_have_none(tmp_path, rows, name):
    """Whatever the classes of the images that their run has seen."""
    write(tmp_path / name, rows, None)
    assert read(tmp_path / name)[0].labels is None


def test_labels_that_are_all_of_the_first_of_several_classes_are_labels(tmp_path, rows):
    write(tmp_path / "x.h5", rows, 0 * LABELS)
    reader = read(tmp_path / "x.h5")[0]
    assert reader.labels.tolist() == [0] * 11 and reader.class_names == ["ant", "bee", "cat"]


def test_an_h5_of_samples_is_a_dataset_that_says_how_it_was_made(tmp_path, rows):
    write(tmp_path / "x.h5", rows)
    data = Dataset(tmp_path / "x.h5")
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.attributes.command == "elbo sample run"
    assert rows_sha256(data.pieces()) == data.attributes.payload_sha256


def test_the_npy_header_is_numpys_own(npy, rows):
    assert npy_header(rows.shape) + rows.tobytes() == npy(rows)


def test_png_files_are_in_order_however_many(tmp_path, images):
    rows = images(12, 4)
    write(tmp_path / "x", rows, None)
    names = sorted(os.listdir(tmp_path / "x"))
    assert len(names) == 12
    for name, row in zip(names, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x" / name)), row)


@pytest.mark.parametrize("first", [0, 255])
def test_a_folder_of_colour_images_stays_colour_when_the_first_is_grey(tmp_path, images, first):
    rows = images(5)
    rows[0] = first
    write(tmp_path / "x", rows, None)
    np.testing.assert_array_equal(read(tmp_path / "x")[1], rows)


def test_a_png_target_is_the_grid(tmp_path, rows):
    """By class, and as large as it is asked for."""
    count, height, width, _ = rows.shape
    labels, names = np.arange(count) % 2, ["ant", "bee"]
    layout = lay_out(height, width, rows_of_classes(count, labels, names), 3)
    made = SamplesHeader(rows.shape, labels, np.arange(count), names, {}, 3)
    with open_samples(tmp_path / "x.png", made) as sink:
        sink.put(rows)
        sink.finish()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(draw_grid(rows, layout)))


def test_the_size_of_a_grid_may_change_before_an_unfinished_one_is_gone_on_with(tmp_path, rows):
    for scale in (1, 2):
        made = SamplesHeader(rows.shape, None, np.arange(len(rows)), [], {"a": 1}, scale)
        with open_samples(tmp_path / "x.png", made) as sink:
            if sink.done:
                sink.finish()
            else:
                sink.put(rows)
    layout = lay_out(rows.shape[1], rows.shape[2], rows_of_classes(len(rows), None), 2)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == layout.size


# Writing with care


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x.png", "x"])
def test_an_existing_target_is_refused_before_anything_is_drawn_and_replaced_on_request(tmp_path, images, name):
    write(tmp_path / name, images(11, seed=1))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="--overwrite"), open_samples(tmp_path / name, plan(images(11))):
        pytest.fail("the block must not be entered")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    write(tmp_path / name, images(11, seed=2), overwrite=True)
    if name != "x.png":
        np.testing.assert_array_equal(read(tmp_path / name)[1], images(11, seed=2))


FILES = ["x.npy", "x.npz", "x.h5", "x.png", "x"]


def content(path):
    """All bytes of a file or folder, by name."""
    return {file.name: file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])}


@pytest.mark.parametrize("name", FILES)
def test_a_failure_half_way_leaves_no_target_and_is_gone_on_with(tmp_path, images, name):
    rows = images(11)
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / name, rows)
    for expected in (0, 4):
        with pytest.raises(RuntimeError, match="boom"), open_samples(tmp_path / name, plan(rows)) as sink:
            assert sink.done == expected
            sink.put(rows[sink.done :][:4])
            raise RuntimeError("boom")
        assert not (tmp_path / name).exists()
    with open_samples(tmp_path / name, plan(rows)) as sink:
        assert sink.done == 8
        sink.put(rows[8:])
        sink.finish()
    assert sorted(os.listdir(tmp_path)) == sorted([name, "whole"])
    assert content(tmp_path / name) == content(tmp_path / "whole" / name)


@pytest.mark.parametrize("name", FILES)
def test_fewer_images_than_announced_leave_no_target(tmp_path, images, name):
    rows = images(11)
    with (
        pytest.raises(DataError, match="4 images came, 11 were announced"),
        open_samples(tmp_path / name, plan(rows)) as sink,
    ):
        sink.put(rows[:4])
        sink.finish()
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", FILES)
def test_an_unfinished_file_of_other_settings_is_refused_with_the_difference(tmp_path, images, name):
    def half(about, overwrite=False, n=11):
        rows = images(n)
        with open_samples(tmp_path / name, SamplesHeader(rows.shape, None, np.arange(n), [], about), overwrite) as sink:
            sink.put(rows[sink.done : sink.done + 4])
            return sink.done

    before = {"seed": 3, "sampler": "ddim", "command": "elbo sample run"}
    assert half(before) == 4
    with pytest.raises(
        UsageError,
        match=r"x.*\.partial: .*\(clip, seed\).* --overwrite",
    ):
        half({**before, "seed": 4, "clip": 1.5})
    with pytest.raises(UsageError, match=r"\(n\)"):
        half(before, n=5)
    assert half({**before, "command": "elbo sample ../run"}, overwrite=True) == 8, "the same settings go on in any case"
    assert half({**before, "seed": 4}, overwrite=True) == 4


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_fails_before_the_first_image_and_leaves_nothing(small_disk, name):
    huge = SamplesHeader((3000, 32, 32, 3), None, np.arange(3000), [], {})
    with (
        pytest.raises(DataError, match=r"x.*: could not claim \d+ bytes: No space left"),
        open_samples(small_disk / name, huge),
    ):
        pytest.fail("the disk is too small for this")
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 64, 300])
@pytest.mark.parametrize("name", ["x", "x.png"])
def test_the_disk_that_pictures_take_is_claimed_too(tmp_path, name, size, channels):
    """With noise, which PNG can only make larger."""
    rows = np.random.default_rng(0).integers(0, 256, (5, size, size, channels), np.uint8)
    with open_samples(tmp_path / name, plan(rows, None)) as sink:
        claimed = sink.partial.stat().st_size
        sink.put(rows)
        sink.finish()
    blocks = sum(-(-len(data) // 4096) * 4096 for data in content(tmp_path / name).values())
    assert rows.nbytes + blocks <= claimed <= 3 * rows.nbytes + 5 * 8192


def test_two_at_once_are_refused(tmp_path, images):
    with (
        open_samples(tmp_path / "x.npz", plan(images(11))),
        pytest.raises(DataError, match="another elbo process"),
        open_samples(tmp_path / "x.npz", plan(images(11))),
    ):
        pass


@pytest.mark.parametrize("name", FILES)
def test_a_file_finished_while_its_lock_was_waited_for_is_refused(tmp_path, images, name, monkeypatch):
    first = ExitStack()
    sink = first.enter_context(open_samples(tmp_path / name, plan(images(11))))
    sink.put(images(11))

    def finish(seconds):
        sink.finish()
        first.close()

    monkeypatch.setattr("elbocli.files.atomic.time.sleep", finish)
    with (
        pytest.raises(UsageError, match="already exists"),
        open_samples(tmp_path / name, plan(images(2), None), wait=60),
    ):
        pytest.fail("the block must not be entered")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x.npz", "x.h5"])
def test_how_they_were_made_travels_along(tmp_path, rows, name):
    write(tmp_path / name, rows)
    assert read(tmp_path / name)[0].made.json() == {"version": 1, "command": "elbo sample run", "seed": 3}


@pytest.mark.parametrize("about", [np.array("{"), np.array("[1]"), np.arange(3)])
def test_an_npz_whose_about_is_nonsense_is_refused(tmp_path, images, about):
    np.savez(tmp_path / "x.npz", arr_0=images(2), about=about)
    with pytest.raises(FormatError, match="about"):
        read(tmp_path / "x.npz")


def test_an_npz_does_not_say_when_it_was_made(tmp_path, rows):
    write(tmp_path / "x.npz", rows)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_unknown_suffix_is_refused(tmp_path, images):
    with pytest.raises(UsageError, match=r"\.jpg"), open_samples(tmp_path / "x.jpg", plan(images(11))):
        pass


def test_a_grid_of_too_many_is_refused(tmp_path):
    wide = SamplesHeader((100, 64, 64, 3), None, np.arange(100), [], {}, 64)
    with pytest.raises(UsageError, match=r"40960 x 40960 pixels.*--scale"), open_samples(tmp_path / "x.png", wide):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x", "x.npy", "x.npz", "x.h5", None])
def test_only_a_grid_is_enlarged(tmp_path, name):
    made = SamplesHeader((3, 4, 4, 3), None, np.arange(3), [], {}, 2)
    target = io.BytesIO() if name is None else tmp_path / name
    with pytest.raises(UsageError, match="--scale"), open_samples(target, made):
        pass


def test_binary_is_never_put_on_a_terminal(tmp_path):
    leader, follower = pty.openpty()
    try:
        with os.fdopen(follower, "wb") as terminal, pytest.raises(UsageError, match="terminal"):
            refuse_terminal(terminal)
    finally:
        os.close(leader)
    with open(tmp_path / "file", "wb") as file:
        refuse_terminal(file)


# Reading with suspicion


def test_a_stream_cut_short_says_how_many_came(images, npy):
    content = npy(images(11))
    for kept in (0, 1, 4, 10):
        stream = io.BytesIO(content[: 128 + kept * 192 + 100])
        with pytest.raises(DataError, match=f"standard input: ended after {kept} of 11 images"):
            read(stream)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, images, name):
    write(tmp_path / name, images(11), None)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 5, 6, 9, 60, 127, 128, 200, 1000, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ElboError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 8, 3)),
        np.zeros((8, 8, 3), "u1"),
        np.zeros((8, 8, 4), "u1"),
        np.zeros((3, 8, 8, 4), "u1"),
        np.zeros((0, 8, 8, 3), "u1"),
        np.zeros((3, 3, 8, 8), "u1"),
        np.asfortranarray(np.zeros((3, 8, 8, 3), "u1")),
        np.zeros((), "u1"),
        np.zeros((3, 8, 8, 3), "i1"),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_that_are_no_images_are_refused(array, npy):
    with pytest.raises(FormatError, match="expected uint8"):
        read(io.BytesIO(npy(array)))


def header(text):
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00" + bytes(200),
        header("{'descr': '|u1'}"),
        header("(1, 2"),
        header("{'descr': '|u1', 'shape': ("),
        header("__import__('os').getcwd()"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 3)}"),
        header("'''"),
    ],
)
def test_a_bad_header_is_refused(content):
    with pytest.raises(FormatError, match="standard input"):
        read(io.BytesIO(content))


@pytest.mark.parametrize("side", [10**6, 10**9, 10**12])
def test_images_of_absurd_size_are_refused(side):
    """Before memory is asked for: a header is a hundred bytes from anybody."""
    content = header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': (2, {side}, {side}, 3)}}")
    with pytest.raises(ElboError):
        read(io.BytesIO(content + bytes(1000)))


def test_a_pickle_in_a_stream_is_refused_and_not_run(bomb, npy):
    with pytest.raises(FormatError):
        read(io.BytesIO(npy(np.array([bomb], object))))
    assert not bomb.went_off


@pytest.mark.parametrize("hostile", ["arr_0", "arr_1"])
def test_a_pickle_in_an_npz_is_refused_and_not_run(tmp_path, images, bomb, hostile):
    path = tmp_path / "x.npz"
    arrays = {"arr_0": images(2), "arr_1": np.arange(2)}
    arrays[hostile] = np.array([bomb, bomb], object)
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(FormatError, match=r"x\.npz"):
        read(path)
    assert not bomb.went_off


@pytest.mark.parametrize("labels", [np.arange(3), np.zeros(2), np.zeros((2, 2), int), np.array(["a", "b"])])
def test_labels_that_do_not_fit_are_refused(tmp_path, images, labels):
    np.savez(tmp_path / "x.npz", images(2), labels)
    with pytest.raises(ElboError, match="labels"):
        read(tmp_path / "x.npz")


def test_an_npz_without_images_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(FormatError, match=r"no images in arr_0.*mu"):
        read(tmp_path / "x.npz")


def flipped(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("member", ["arr_0.npy", "arr_1.npy"])
@pytest.mark.parametrize("n", [2, 500])
def test_a_damaged_npz_is_called_damaged(tmp_path, save, member, n):
    path = tmp_path / "x.npz"
    rows = np.arange(n * 192, dtype=np.uint64).astype(np.uint8).reshape(n, 8, 8, 3)
    save(path, rows, np.arange(n))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    start = info.header_offset + 30 + len(member) + 20
    flipped(path, start + info.compress_size // 2)
    with pytest.raises(ElboError, match=r"x\.npz"):
        read(path, size=64)


def test_an_npz_packed_in_an_unknown_way_is_refused(tmp_path, images):
    path = tmp_path / "x.npz"
    np.savez(path, images(2))
    damaged = bytearray(path.read_bytes())
    at = damaged.rindex(b"PK\x01\x02") + 10
    damaged[at : at + 2] = (99).to_bytes(2, "little")
    path.write_bytes(damaged)
    with pytest.raises(ElboError, match=r"x\.npz"):
        read(path)


def test_what_is_not_there_or_not_readable_is_named(tmp_path):
    for name in ("gone.npy", "gone.npz", "gone.h5"):
        with pytest.raises(ElboError, match=name):
            read(tmp_path / name)
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(FormatError, match=r"not an \.npz archive"):
        read(tmp_path / "x.npz")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"an empty folder, not images; .elbo sample"):
        read(tmp_path)


def test_images_of_different_sizes_are_refused_by_name(tmp_path, images):
    for name, size in (("a.png", 8), ("b.png", 9)):
        Image.fromarray(images(1, size)[0]).save(tmp_path / name)
    with pytest.raises(DataError, match=r"b\.png: .*a\.png"):
        read(tmp_path)


@pytest.mark.parametrize("damaged", ["a.png", "b.png"])
def test_a_damaged_image_in_a_folder_is_named(tmp_path, images, damaged):
    for name in ("a.png", "b.png"):
        Image.fromarray(images(1)[0]).save(tmp_path / name)
    (tmp_path / damaged).write_bytes(b"no image")
    with pytest.raises(DataError, match=damaged):
        read(tmp_path)


def test_a_pipe_posing_as_an_image_is_refused_not_waited_for(tmp_path, within):
    os.mkfifo(tmp_path / "a.png")
    with within(2), pytest.raises(DataError, match=r"a\.png"):
        read(tmp_path)


def test_reading_takes_only_what_is_asked_for(images, npy):
    stream = io.BytesIO(npy(images(11)))
    with warnings.catch_warnings(), read_samples(stream) as reader:
        reader.at(0, 2)
        assert stream.tell() == 128 + 2 * 192
