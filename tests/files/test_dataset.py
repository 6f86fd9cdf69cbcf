"""Datasets read back whatever their layout, tell what is damaged, and survive kills and full disks while they are written."""

import gc
import json
import math
import os
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from harness import heard

from elbocli.data.samples import read_samples
from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.dataset import Dataset, DatasetWriter
from elbocli.files.dataset import find_dataset as find
from elbocli.files.latents import CONVENTIONS, LatentSpace, read_space
from elbocli.files.resumable import IMAGES, LATENTS, BlockLayout
from elbocli.report.describe import verify

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"
SOURCE = {"of": "test"}
SPACE = LatentSpace("edm2", [0.5, -1.0], [2.0, 0.25], "[0,1]", "vae", "ab" * 32, 256, 1)
LAYOUTS = {
    "raw": BlockLayout(IMAGES, (8, 8, 3)),
    "grey": BlockLayout(IMAGES, (8, 8, 1)),
    "latents": BlockLayout(LATENTS, (4, 8, 8)),
}


def rows_of(kind, count=12):
    random = np.random.default_rng(0)
    shape = (count, *LAYOUTS[kind].row)
    return random.normal(size=shape).astype(np.float16) if kind == "latents" else random.integers(0, 256, shape, "u1")


def write(path, kind="raw", count=12, step=5, limit=None, **about):
    about = {"num_classes": 3, "image_size": 8, **about, **(asdict(SPACE) if kind == "latents" else {})}
    with DatasetWriter(path, LAYOUTS[kind], limit or count, SOURCE).held() as writer:
        for start in range(writer.rows, count, step):
            writer.append(rows_of(kind, count)[start : start + step], start + step, {})
        names = {"class_names": ["ant", "bee", "cat"], "files": [f"ä{i}.png" for i in range(count)]}
        assert not path.exists()
        writer.finish({"labels": np.arange(count) % 3, **names}, about)
    return path


# Reading


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_labels_and_names_read_back_in_any_order_also_by_plain_h5py(kind, tmp_path):
    path = write(tmp_path / "x.h5", kind, crop="center")
    rows = rows_of(kind)
    data = Dataset(path, latents=True)
    order = np.random.default_rng(0).integers(0, 12, 50)
    batch = data.read(order)
    np.testing.assert_array_equal(batch, rows[order])
    batch[:] = 0
    np.testing.assert_array_equal(np.concatenate(list(data.batches(5))), rows)
    image, label = data[-1]
    np.testing.assert_array_equal(image, rows[11] if kind == "latents" else rows[11].transpose(2, 0, 1))
    assert label == 2 and data.labels.tolist() == [i % 3 for i in range(12)] and data.labels.dtype == np.int64
    assert data.shape == (12, 8, 8, {"grey": 1, "latents": 2}.get(kind, 3)) and data.class_names == ["ant", "bee", "cat"]
    assert (data.num_classes, data.attributes.count, data.attributes.crop) == (3, 12, "center")
    assert os.listdir(tmp_path) == ["x.h5"]
    with h5py.File(path, "r") as file:
        block = file[data.kind]
        assert block.chunks is None and file.attrs["format"] == "elbo-dataset" and file["files"].asstr()[3] == "ä3.png"
        assert np.array_equal(block[()], rows)


@pytest.mark.parametrize("index", range(2))
def test_the_code_in_the_docs_does_what_it_says(index, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rows = rows_of("raw")
    made = {}
    write(Path("raw.h5"))
    exec(blocks[index], made)
    name, wanted = [("images", rows[:8]), ("mapped", rows)][index]
    assert np.array_equal(made[name], wanted)


@pytest.mark.parametrize("options", [{"chunks": (2, 8, 8, 3)}, {"chunks": (2, 8, 8, 3), "compression": "gzip"}, {}])
def test_a_file_of_another_program_reads_the_same_and_damage_in_it_is_told(tmp_path, options):
    rows = rows_of("raw") // 64
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["labels"] = np.arange(12) % 2
        file.attrs.update({"format": "elbo-dataset", "version": 1})
        file.create_dataset("images", data=rows, **options)
        file.flush()
        block = file["images"].id
        at = block.get_offset() if not options else block.get_chunk_info(1).byte_offset
    data = Dataset(path)
    np.testing.assert_array_equal(data.read([7, 0, 7, 3]), rows[[7, 0, 7, 3]])
    assert (data.class_names, data.num_classes) == ([], 2)
    content = bytearray(path.read_bytes())
    if "compression" in options:  # a chunk that doesn't unpack
        content[at + 10 : at + 60] = bytes(50)
    else:  # cut short behind a whole header, which HDF5 itself doesn't notice when the end-of-file mark is changed too
        end = content.index(len(content).to_bytes(8, "little"), 0, 64)
        content[end : end + 8] = (at + 100).to_bytes(8, "little")
        del content[at + 100 :]
    path.write_bytes(content)
    with pytest.raises(ElboError, match=r"x\.h5"):
        Dataset(path)


def test_the_digests_are_of_the_rows_and_of_all_else(tmp_path):
    """Also where an attribute is long: a command that lists 8000 classes, within JSON that must stay whole."""
    long = json.dumps({"command": "elbo sample " + "7é," * 200_000})
    path = write(tmp_path / "x.h5", samples=long, zebra="last")

    def digests():
        data = Dataset(path)
        about = data.attributes
        return data.payload_digest() == about.payload_sha256, data.contents_digest() == about.contents_sha256

    data = Dataset(path)
    assert (data.attributes.samples, data.attributes.more["zebra"]) == (long, "last")
    assert digests() == (True, True)
    with h5py.File(path, "r+") as file:
        file["images"][3, 2, 1, 0] ^= 1
    assert digests() == (False, True)
    for name, value in (("labels", (np.arange(12) % 3).astype("u8")), ("files", ["a"] * 12), ("@zebra", h5py.Empty("f4"))):
        with h5py.File(write(path := tmp_path / f"{name}.h5", zebra="last"), "r+") as file:
            put(file, name, value)
        assert digests() == (True, False), name


def put(file, name, value):
    """Replace a member, or with @ before its name an attribute; None deletes it, a function makes it."""
    owner, name = (file.attrs, name[1:]) if name[0] == "@" else (file, name)
    del owner[name]
    if callable(value):
        value(file)
    elif value is not None:
        owner[name] = value


def virtual(file):
    layout = h5py.VirtualLayout((12, 8, 8, 3), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "images", (12, 8, 8, 3))
    file.create_virtual_dataset("images", layout)


def external(file):
    file.create_dataset("images", (12, 8, 8, 3), "u1", external=[("/etc/passwd", 0, 12 * 192)])


REFUSED = {
    "raw": [
        ("@format", "other"),
        ("@version", 0),
        ("images", None),
        ("images", np.zeros((12, 8, 8, 3))),
        ("images", np.zeros((12, 192), "u1")),
        ("images", np.zeros((12, 8, 8, 4), "u1")),
        ("images", np.zeros((0, 8, 8, 3), "u1")),
        ("images", lambda file: file.create_group("images")),
        ("images", h5py.ExternalLink("/etc/passwd", "/x")),
        ("images", virtual),
        ("images", external),
        ("labels", None),
        ("labels", np.zeros(11, "i8")),
        ("labels", np.zeros(12)),
        ("labels", np.full(12, -1)),
        ("labels", np.full(12, 2**64 - 1, "u8")),
        ("labels", h5py.SoftLink("/images")),
        ("class_names", np.arange(3)),
        ("class_names", "ant"),
    ],
    "latents": [("latents", np.zeros((12, 3, 8, 8), "f2")), ("latents", np.zeros((12, 4, 8, 8), "f4"))],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_no_whole_dataset_is_refused_by_name(kind, tmp_path):
    for name, value in REFUSED[kind]:
        path = tmp_path / "data.h5"
        path.unlink(missing_ok=True)
        with h5py.File(write(path, kind), "r+") as file:
            put(file, name, value)
        with pytest.raises(FormatError, match=r"data\.h5: "):
            Dataset(path, latents=True)
            pytest.fail(f"{name} {value}")


ODD = [math.nan, -math.inf, 1 + 2j, np.array([1j]), np.longdouble(1.5), h5py.Empty("f"), h5py.Reference(), h5py.RegionReference()]


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_an_attribute_that_json_lacks_is_described(value, tmp_path, elbo):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["odd"] = value
    result = elbo("info", path, "--json")
    assert result.returncode == 0 and "odd" in json.loads(result.stdout)
    assert elbo("info", path).returncode == 0


def test_latents_are_no_pixels_and_oblong_images_no_squares(tmp_path):
    with pytest.raises(FormatError, match="latents"):
        Dataset(write(tmp_path / "x.h5", "latents"))
    Dataset(write(tmp_path / "y.h5")).check_square()
    with h5py.File(tmp_path / "y.h5", "r+") as file:
        put(file, "images", np.zeros((12, 8, 16, 3), "u1"))
    with pytest.raises(FormatError, match="16 x 8"):
        Dataset(tmp_path / "y.h5").check_square()


def test_labels_are_bounded_by_the_number_of_classes_alone(pack, images):
    """ImageNet-21k's shards have more classes than images."""
    names = [f"n{number}" for number in range(21_841)]
    assert Dataset(pack("many.h5", images(3), [21_840, 0, 3], names)).labels.tolist() == [21_840, 0, 3]


def test_a_file_cut_short_or_damaged_inside_is_refused(tmp_path):
    path = write(tmp_path / "x.h5")
    whole = path.read_bytes()
    cuts = [whole[:size] for size in (0, 1, 8, 9, 500, 2047, 2048, 3000, len(whole) - 500, len(whole) - 1)]
    for content in [*cuts, *(whole.replace(mark, bytes(4)) for mark in (b"TREE", b"SNOD", b"HEAP", b"GCOL"))]:
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"x\.h5"):
            Dataset(path)


def test_the_only_dataset_of_a_folder_is_found(tmp_path):
    for count, name in enumerate(("one.h5", "two.h5", "three.h5")):
        if count == 1:
            assert find(tmp_path).name == "one.h5"
        else:
            with pytest.raises(DataError, match=f"{count} datasets"):
                find(tmp_path)
        write(tmp_path / name, "latents" if count else "raw")


@pytest.mark.parametrize("labels", [np.arange(12) % 3, np.arange(12) - 1])
@pytest.mark.parametrize("use", [Dataset, verify, read_samples, lambda path: find(path.parent)])
def test_a_file_is_closed_when_its_reader_returns_or_raises(labels, use, tmp_path):
    """HDF5 refuses to write it while the same process still has it open, as a traceback or a cycle may."""
    with h5py.File(write(tmp_path / "a.h5"), "r+") as file:
        put(file, "labels", labels)
    gc.disable()
    try:
        kept = use(tmp_path / "a.h5")
        if use is read_samples:
            with kept as reader:
                reader.at(0, 2)
    except ElboError as error:
        kept = error
    finally:
        gc.enable()
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0, kept


# Latents


def test_a_latent_space_reads_back_and_is_needed(tmp_path):
    path = write(tmp_path / "x.h5", "latents")
    assert Dataset(path, latents=True).latent_space == SPACE and Dataset(write(tmp_path / "y.h5")).latent_space is None
    plain = replace(SPACE, mirrored=0)
    assert read_space(asdict(plain), 2, "x") == plain
    with h5py.File(path, "r+") as file:
        del file.attrs["latent_shift"]
    with pytest.raises(FormatError, match="shift"):
        Dataset(path, latents=True).identity()


BAD_SPACES = """
{"latent_scale": null}
{"latent_shift": [0.0]}
{"latent_shift": [0.0, NaN]}
{"latent_scale": [1.0, Infinity]}
{"latent_scale": [1.0, "2"]}
{"latent_scale": [1.0, 0.0]}
{"latent_shift": [0.0, 0.0, 0.0], "latent_scale": [1.0, 1.0, 1.0]}
{"latent_convention": "edm"}
{"latent_input": "[0,255]"}
{"autoencoder": ""}
{"pixel_size": 0}
{"mirrored": 2}
"""


@pytest.mark.parametrize("change", BAD_SPACES.strip().splitlines())
def test_attributes_that_cannot_be_are_refused_by_file(change):
    with pytest.raises(FormatError, match=r"^some\.h5: "):
        read_space({**asdict(SPACE), **json.loads(change)}, 2, "some.h5")


def test_the_conventions_are_those_of_their_sources():
    diffusers = CONVENTIONS["diffusers"]
    edm2 = CONVENTIONS["edm2"]
    assert diffusers.make({"scaling_factor": 0.18215}, 4) == ((0.0,) * 4, (0.18215,) * 4)
    flux = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    assert diffusers.make(flux, 16) == ((0.1159,) * 16, (0.3611,) * 16)
    each = {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [4.0, 0.5]}
    assert diffusers.make(each, 2) == ((1.0, 2.0), (0.125, 1.0))
    for change in ({"scaling_factor": "x"}, {"latents_mean": [0.0]}):
        with pytest.raises(FormatError):
            diffusers.make({**each, **change}, 2)
    shift, scale = edm2.make({}, 4)
    # A channel with exactly the constants' mean and deviation comes out with mean 0 and deviation .5.
    for mean, std, a, b in zip((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), shift, scale, strict=True):
        assert (mean - a) * b == pytest.approx(0) and (mean + std - a) * b == pytest.approx(0.5)
    with pytest.raises(UsageError, match="16"):
        edm2.make({}, 16)


def test_listing_the_conventions_imports_no_numbers(python):
    listed = "import sys, elbocli.files.latents; print({'numpy', 'torch', 'h5py', 'msgspec', 'logging'} & set(sys.modules))"
    assert python(listed) == "set()\n"


# Writing


def test_the_same_rows_give_the_same_bytes_however_they_came(tmp_path):
    whole = write(tmp_path / "a.h5", step=12).read_bytes()
    time.sleep(1.1)  # HDF5 notes times in seconds
    assert write(tmp_path / "b.h5", step=1, limit=50).read_bytes() == whole


def begun(path, source=SOURCE, **options):
    """Write 8 rows of 12; return the state that the writer found."""
    with DatasetWriter(path, LAYOUTS["raw"], 12, source).held(**options) as writer:
        state = writer.state
        writer.append(rows_of("raw")[writer.rows : 8], 9, {"skipped": {"2": "why"}})
    return state


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path):
    path = tmp_path / "out.h5"
    with DatasetWriter(path, LAYOUTS["raw"], 12, SOURCE).held() as writer:
        writer.append(rows_of("raw"), 12, {})
        with pytest.raises(DataError, match="another elbo process"):
            begun(path)
        writer.finish({"labels": np.zeros(12, np.int64)}, {})
    np.testing.assert_array_equal(Dataset(path).read(range(12)), rows_of("raw"))
    with pytest.raises(UsageError, match="exists"):
        begun(path)
    assert os.listdir(tmp_path) == ["out.h5"]


CHANGES = {
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "flipped": lambda content: bytes(byte ^ 1 for byte in content),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_rows_that_are_not_what_the_journal_says_are_written_again(tmp_path, change, monkeypatch):
    path = tmp_path / "out.h5"
    seen = []
    begun(path)
    harmed = path.with_name("out.h5.partial")
    harmed.write_bytes(change(harmed.read_bytes()))
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: seen.append(os.listdir(tmp_path)))
    with heard() as said:
        assert begun(path).done == 0
    assert "writing all rows again" in said[0]
    assert "out.h5.partial.json" not in seen[0], "gone before the disk is claimed"
    monkeypatch.undo()
    assert write(path).read_bytes() == write(tmp_path / "whole.h5").read_bytes()


def test_an_unfinished_file_survives_a_full_disk_and_its_writer_closes_all(small_disk):
    path = small_disk / "out.h5"
    count = 1600
    rows = rows_of("raw", count)
    with DatasetWriter(path, LAYOUTS["raw"], count, SOURCE).held() as writer:
        writer.append(rows[:100], 100, {})
    os.truncate(small_disk / "out.h5.partial", 2048 + 100 * 192)
    with pytest.raises(OSError, match="No space"), open(small_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DataError, match="No space left"), DatasetWriter(path, LAYOUTS["raw"], count, SOURCE).held():
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    (small_disk / "filler").unlink()
    np.testing.assert_array_equal(Dataset(write(path, count=count, step=100)).read(range(count)), rows)
    path.unlink()


EVERY_KILL = """
import random
import numpy as np
from elbocli.files.dataset import DatasetWriter
from elbocli.files.resumable import IMAGES, BlockLayout

folder, stride, N = Path(sys.argv[1]), int(sys.argv[2]), 700
bad = set(random.Random(1).sample(range(N), 9))
rows = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), np.uint8)

def work(out):
    with DatasetWriter(out, BlockLayout(IMAGES, rows.shape[1:]), N, {"of": "rows"}).held() as writer:
        skipped = list(writer.state.notes.get("skipped", []))
        for start in range(writer.state.done, N, 250):
            part = range(start, min(start + 250, N))
            skipped += [i for i in part if i in bad]
            writer.append(rows[[i for i in part if i not in bad]], part[-1] + 1, {"skipped": skipped})
        names = {"class_names": ["a"], "files": [f"{i}.png" for i in range(N) if i not in bad]}
        writer.finish({"labels": np.zeros(N - len(bad), int), **names}, {"skipped": len(skipped)})

work(folder / "whole.h5")
want, out, k, died = (folder / "whole.h5").read_bytes(), folder / "out.h5", 0, True
while died:
    died = crashed(lambda: work(out), k)
    if not out.exists():
        work(out)
    assert out.read_bytes() == want, k
    for left in folder.glob("out.h5*"):
        left.unlink()
    k += stride
print(k)
"""


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_its_steps_and_resumed_the_bytes_are_the_same(tmp_path, crashes, stride):
    assert int(crashes(EVERY_KILL, tmp_path, stride)) >= 40
