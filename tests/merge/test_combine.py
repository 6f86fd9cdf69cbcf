"""Merging: parts give the very file that one prep gives; parts that don't belong together are named."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from calls import Stopped, largest_file, stop_after
from harness import heard
from PIL import Image

from elbocli.errors import DataError, ElboError
from elbocli.files.dataset import Dataset, DatasetWriter, encode
from elbocli.files.reading import add_digests
from elbocli.files.resumable import ENCODED, IMAGES, BlockLayout
from elbocli.merge.combine import merge_datasets

COUNT, NAMES = 23, ["ant", "bee", "cat"]
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
CUTS = (0, 5, 6, 16, COUNT)
DIGESTS = [f"{value:064x}" for value in (2**256 - 5, 3, 2**255, 2**255 + 9)]


def write(path: Path, kind: str = "raw", start: int = 0, stop: int = COUNT, **attributes: Any) -> Path:
    """Images start to stop as prep would write them."""
    rows: Any = PIXELS[start:stop]
    labels = np.arange(start, stop) % 3
    about = {"num_classes": 3, "image_size": 8, "crop": "center", "skipped": 0, "command": "", **attributes}
    layout = BlockLayout(IMAGES, (8, 8, 3))
    if kind != "raw":
        rows, layout = [encode(row, kind) for row in rows], BlockLayout(ENCODED, (), 300)
        about |= {"store": kind, "channels": 3}
    with DatasetWriter(path, layout, stop - start, "test").held() as writer:
        writer.append(rows, stop - start, {})
        arrays = {"labels": labels, "class_counts": np.bincount(labels, minlength=3), "seeds": np.arange(start, stop)}
        names = {"class_names": NAMES, "files": [f"{i}.png" for i in range(start, stop)]}
        writer.finish({**arrays, **names}, {key: value for key, value in about.items() if value is not None})
    return path


def whole(folder: Path, kind: str = "raw") -> bytes:
    """The bytes of the dataset that all shards make."""
    return write(folder / "whole.h5", kind, skipped=6, source_sha256=add_digests(DIGESTS)).read_bytes()


def shards(folder: Path, kind: str = "raw") -> list[Path]:
    parts = []
    for index, (start, stop) in enumerate(itertools.pairwise(CUTS)):
        about = {"skipped": index, "source_sha256": DIGESTS[index], "shard": f"{index + 1}/4", "shard_of": "ab" * 32}
        parts.append(write(folder / f"part{index}.h5", kind, start, stop, **about))
    return parts


def merged(out: Path, parts: list[Path], at: Callable[[int], object] = lambda done: None) -> list[str]:
    with heard(lambda done, *_: at(done)) as said:
        merge_datasets(parts, out)
    return said


def flip(path: Path, name: str) -> None:
    """Flip a bit of the first number of an array; again to mend it."""
    with h5py.File(path, "r+") as file:
        file[name][(0,) * file[name].ndim] ^= 4


@pytest.mark.parametrize("kind", ["raw", "png", "webp"])
def test_four_shards_are_the_single_preps_file(kind, tmp_path):
    parts = shards(tmp_path, kind)
    merged(tmp_path / "out.h5", [parts[i] for i in (2, 0, 3, 1)])
    assert (tmp_path / "out.h5").read_bytes() == whole(tmp_path, kind)
    assert [path.name for path in tmp_path.glob("out*")] == ["out.h5"]


def test_datasets_without_shard_numbers_are_joined_as_given(tmp_path):
    merged(tmp_path / "out.h5", [write(tmp_path / "b.h5", start=10), write(tmp_path / "a.h5", stop=10)])
    data = Dataset(tmp_path / "out.h5")
    assert np.array_equal(data.batch(np.arange(COUNT)), np.concatenate([PIXELS[10:], PIXELS[:10]]))
    assert data.contents()["files"][:2] == ["10.png", "11.png"]


SAME = {"sampler": "ddim", "crop": "center", "latent_shift": [1, 2]}


def samples_of(path: Path, start: int = 0, stop: int = COUNT, **about: Any) -> Path:
    return write(path, "raw", start, stop, crop=None, samples=json.dumps({**SAME, **about}))


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        (lambda at: [at / "gone.h5"], "expected a dataset"),
        (lambda at: [*shards(at)[:2], at / "part3.h5"], "name all shards"),
        (lambda at: shards(at)[2:3], "name all shards"),
        (lambda at: [*shards(at), shutil.copy(at / "part1.h5", at / "double.h5")], "name all shards"),
        (lambda at: [*shards(at), at / "." / "part1.h5"], "twice"),
        (lambda at: [write(at / "b.h5", shard="1/4", shard_of="cd" * 32), *shards(at)[1:]], "of one 'elbo prep'"),
        (lambda at: [*shards(at), write(at / "b.h5")], "of one 'elbo prep'"),
        (lambda at: [write(at / "a.h5"), shutil.copy(at / "a.h5", at / "b.h5")], "same images"),
        (lambda at: [write(at / "a.h5"), write(at / "b.h5", "png")], r"b\.h5: kind"),
        (lambda at: [write(at / "a.h5"), write(at / "b.h5", crop="none")], r"b\.h5: crop"),
        (lambda at: [write(at / "a.h5"), write(at / "b.h5", background="white")], r"b\.h5: background"),
        (lambda at: [samples_of(at / "a.h5"), samples_of(at / "b.h5", crop="none")], r"b\.h5: crop"),
        (lambda at: [samples_of(at / "a.h5"), samples_of(at / "b.h5", filter="lanczos")], r"b\.h5: filter"),
        (lambda at: [samples_of(at / "a.h5"), write(at / "b.h5", samples="{} + {}")], r"b\.h5: .*samples"),
    ],
)
def test_parts_that_do_not_belong_together_are_named(parts, word, tmp_path):
    with pytest.raises(ElboError, match=word):
        merged(tmp_path / "out.h5", parts(tmp_path))
    assert not list(tmp_path.glob("out*"))


def test_samples_say_in_what_their_parts_differ_however_they_were_joined(tmp_path):
    def described(name: str) -> dict[str, Any]:
        return json.loads(Dataset(tmp_path / name).attributes.samples)

    about: list[dict[str, Any]] = [
        {"seed": 3, "command": "elbo sample a, b"},
        {"seed": 1, "command": "c"},
        {"seed": 3, "steps": 4, "command": "c"},
    ]
    parts = [samples_of(tmp_path / f"{k}.h5", 7 * k, 7 * (k + 1), **each) for k, each in enumerate(about)]
    merged(tmp_path / "all.h5", parts)
    differing = {"seed": [3, 1], "command": ["elbo sample a, b", "c"], "steps": [None, 4]}
    assert described("all.h5") == {"version": 1, **SAME, **differing}
    merged(tmp_path / "two.h5", parts[:2])
    merged(tmp_path / "three.h5", [tmp_path / "two.h5", parts[2]])
    assert described("three.h5") == described("all.h5")


def test_a_damaged_part_is_found_and_good_ones_needn_t_be_copied_again(tmp_path):
    parts, out = shards(tmp_path), tmp_path / "out.h5"
    flip(parts[2], "images")
    with pytest.raises(DataError, match=r"part2\.h5: damaged: its images"):
        merged(out, parts)
    flip(parts[2], "images")
    flip(parts[1], "seeds")
    with pytest.raises(DataError, match=r"part1\.h5: damaged: its labels"):
        merged(out, parts)
    flip(parts[1], "seeds")
    assert "going on: 2 datasets" in " ".join(merged(out, parts))
    assert out.read_bytes() == whole(tmp_path)


def test_an_unfinished_part_is_copied_again(tmp_path, monkeypatch):
    """Else rows of a part that was damaged, and then replaced, would stay."""
    monkeypatch.setattr("elbocli.files.dataset.SCAN_BYTES", 400)
    parts, out = shards(tmp_path), tmp_path / "out.h5"
    flip(parts[2], "images")
    with pytest.raises(Stopped):
        merged(out, parts, at=stop_after(8))
    flip(parts[2], "images")
    merged(out, parts)
    assert out.read_bytes() == whole(tmp_path)


KILLED = """
from elbocli.merge.combine import merge_datasets
out, want, *parts = map(Path, sys.argv[1:])
k, resumed = 0, 0
while crashed(lambda: merge_datasets(parts, out), k):
    resumed += out.with_name("out.h5.partial.json").exists()
    if not out.exists():
        merge_datasets(parts, out)
    assert out.read_bytes() == want.read_bytes(), k
    assert len(list(out.parent.glob("out*"))) == 1 + out.with_name("out.h5.lock").exists(), k
    out.unlink()
    k += 9
print(resumed)
"""


@pytest.mark.parametrize("kind", ["raw", "webp"])
@pytest.mark.long
def test_killed_at_its_steps_and_resumed_the_bytes_are_the_same(kind, tmp_path, crashes):
    whole(tmp_path, kind)
    parts = shards(tmp_path, kind)
    assert int(crashes(KILLED, tmp_path / "out.h5", tmp_path / "whole.h5", *parts)) >= 2


def test_a_full_disk_fails_at_once_and_one_too_full_for_the_labels_keeps_the_images(tmp_path):
    parts, out = shards(tmp_path), tmp_path / "out.h5"
    with largest_file(4000), pytest.raises(DataError, match="could not claim"):
        merged(out, parts)
    assert not list(tmp_path.glob("out*"))
    with largest_file(9000), pytest.raises(DataError, match="could not write"):
        merged(out, parts)
    assert "going on: 4 datasets" in " ".join(merged(out, parts))
    assert out.read_bytes() == whole(tmp_path)


@pytest.mark.parametrize("store", ["raw", "webp"])
def test_shards_of_prep_are_the_single_preps_file_but_for_the_command(store, elbo, tmp_path):
    draw = np.random.default_rng(0)
    for index in range(22):
        path = tmp_path / "src" / NAMES[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Some transparent, and one that is no image: counts of both add up.
        Image.fromarray(draw.integers(0, 256, (10, 12, 4 - (index % 5 > 0)), np.uint8)).save(path)
    (tmp_path / "src" / "bee" / "bad.png").write_bytes(b"no image")
    for line in (["whole.h5"], *([f"part{k}.h5", "--shard", f"{k}/4"] for k in (1, 2, 3, 4))):
        done = elbo("prep", "src", "--size", 8, "--on-error", "skip", "--store", store, *line, cwd=tmp_path)
        assert done.returncode == 0
    line = ["merge", "out.h5", *(f"part{k}.h5" for k in (4, 1, 2, 3))]
    result = elbo(*line, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"") and b"22 images of 4 datasets" in result.stderr
    one, other = (Dataset(tmp_path / name).attributes.json() for name in ("whole.h5", "out.h5"))
    different = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert different == {"command", "contents_sha256"} and other["command"].startswith("elbo merge")
    assert one["skipped"] == 1 and ": 5" in one["changed"]
    assert elbo("info", "out.h5", "--verify", cwd=tmp_path).returncode == 0
