"""Merging: parts give the very file that one prep gives; strangers are named."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from packing import Stopped, at_progress, messages, stop_after
from PIL import Image

from elbocli.errors import DataError, ElboError, FormatError, Interrupted, UsageError
from elbocli.files.dataset import ENCODED, ENCODINGS, IMAGES, LATENTS, BlockLayout, Dataset, DatasetWriter, encode
from elbocli.files.reading import add_digests
from elbocli.merge.combine import merge_datasets

KINDS = ("raw", "png", "webp", "latents")
COUNT, SIZE, CLASSES = 23, 8, ("ant", "bee", "cat")
DIGESTS = [f"{value:064x}" for value in (2**256 - 5, 3, 2**255, 2**255 + 9)]


def rows_of(kind: str, count: int = COUNT) -> np.ndarray:
    draw = np.random.default_rng(0)
    if kind == "latents":
        return draw.normal(size=(count, 8, 4, 4)).astype(np.float16)
    return draw.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def write(path: Path, kind: str, start: int = 0, stop: int = COUNT, skipped: int = 0, **attributes: Any) -> Path:
    """Images start to stop as prep would write them."""
    rows = rows_of(kind, max(stop, COUNT))[start:stop]
    labels = np.arange(start, stop) % 3
    about: dict[str, Any] = {"num_classes": 3, "image_size": SIZE, "crop": "center", "skipped": skipped, "command": ""}
    if kind == "latents":
        layout = BlockLayout(LATENTS, rows.shape[1:])  # type: ignore[arg-type]
    elif kind == "raw":
        layout = BlockLayout(IMAGES, rows.shape[1:])  # type: ignore[arg-type]
    else:
        layout, about = BlockLayout(ENCODED, (), 300), {**about, "store": kind, "channels": 3}
    packed = [encode(row, kind) for row in rows] if kind in ENCODINGS else rows
    with DatasetWriter(path, layout, len(rows), "test").held() as writer:
        writer.append(packed, len(rows), {})
        writer.finish(
            {"labels": labels, "class_counts": np.bincount(labels, minlength=3), "seeds": np.arange(start, stop)},
            {"class_names": list(CLASSES), "files": [f"{i}.png" for i in range(start, stop)]},
            {key: value for key, value in {**about, **attributes}.items() if value is not None},
        )
    return path


def shards(folder: Path, kind: str, cuts: tuple[int, ...] = (0, 5, 6, 16, COUNT), **attributes: Any) -> list[Path]:
    return [
        write(
            folder / f"part{index}.h5",
            kind,
            start,
            stop,
            skipped=index,
            source_sha256=DIGESTS[index],
            **{"shard": f"{index + 1}/{len(cuts) - 1}", "shard_of": "ab" * 32, **attributes},
        )
        for index, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]


def merged(out: Path, parts: list[Path], **settings: Any) -> list[str]:
    with messages() as said:
        merge_datasets(parts, out, **settings)
    return said


def everything(path: Path) -> dict[str, Any]:
    """What plain h5py reads."""
    with h5py.File(path, "r") as file:
        arrays = {name: (str(file[name].dtype), file[name][()].tolist()) for name in file}
        attributes = {key: np.asarray(value).tolist() for key, value in file.attrs.items()}
    return {**arrays, **attributes}


@pytest.mark.parametrize("kind", KINDS)
def test_four_shards_are_the_single_preps_file(kind: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.h5", kind, skipped=6, source_sha256=add_digests(DIGESTS))
    parts = shards(tmp_path, kind)
    merged(tmp_path / "out.h5", [parts[i] for i in (2, 0, 3, 1)])
    assert (tmp_path / "out.h5").read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == ["out.h5"]


def test_datasets_without_shard_numbers_are_joined_as_given(tmp_path: Path) -> None:
    parts = [write(tmp_path / "b.h5", "raw", 10, COUNT), write(tmp_path / "a.h5", "raw", 0, 10)]
    merged(tmp_path / "out.h5", parts)
    data = Dataset(tmp_path / "out.h5")
    expected = np.concatenate([rows_of("raw")[10:], rows_of("raw")[:10]])
    assert np.array_equal(data.batch(np.arange(COUNT)), expected)
    assert data.contents()[1]["files"][:2] == ["10.png", "11.png"] and data.attributes.count == COUNT


@pytest.mark.parametrize("chosen", [(0, 1, 3), (0, 3), (2,)])
def test_missing_shards_are_refused(chosen: tuple[int, ...], tmp_path: Path) -> None:
    parts = shards(tmp_path, "raw")
    with pytest.raises(DataError, match="each shard"):
        merged(tmp_path / "out.h5", [parts[i] for i in chosen])
    assert not list(tmp_path.glob("out*"))


def test_foreign_and_doubled_parts_are_named(tmp_path: Path) -> None:
    parts = shards(tmp_path, "raw")
    out = tmp_path / "out.h5"
    double = tmp_path / "double.h5"
    double.write_bytes(parts[1].read_bytes())
    with pytest.raises(DataError, match="each shard"):
        merged(out, [*parts, double])
    with pytest.raises(UsageError, match="named twice"):
        merged(out, [*parts, tmp_path / "." / "part1.h5"])
    foreign = write(tmp_path / "foreign.h5", "raw", shard="2/4", shard_of="cd" * 32)
    with pytest.raises(DataError, match="one prep"):
        merged(out, [parts[0], foreign, *parts[2:]])
    plain = write(tmp_path / "plain.h5", "raw")
    with pytest.raises(DataError, match="one prep"):
        merged(out, [*parts, plain])
    with pytest.raises(UsageError, match="already exists"):
        merged(plain, parts)


@pytest.mark.parametrize(
    ("other", "attributes", "message"),
    [
        ("png", {}, "kind is"),
        ("raw", {"crop": "none"}, "crop is none, but center"),
        ("raw", {"background": "white"}, "background is white, but None"),
        ("raw", {"num_classes": 4}, "num_classes is 4, but 3"),
    ],
)
def test_parts_made_in_another_way_are_refused(
    other: str, attributes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    parts = [write(tmp_path / "a.h5", "raw"), write(tmp_path / "b.h5", other, **attributes)]
    with pytest.raises(DataError, match=rf"b\.h5: {message}"):
        merged(tmp_path / "out.h5", parts)


def samples_of(path: Path, start: int, stop: int, **about: Any) -> Path:
    about = {"sampler": "ddim", "crop": "center", "latent_shift": [1, 2], **about}
    return write(path, "raw", start, stop, crop=None, samples=json.dumps(about))


def described(path: Path) -> dict[str, Any]:
    return json.loads(Dataset(path).attributes.samples)


def test_samples_say_in_what_their_parts_differ_however_they_were_joined(tmp_path: Path) -> None:
    about = [
        {"seed": 3, "command": "elbo sample a, b"},
        {"seed": 1, "command": "c"},
        {"seed": 3, "steps": 4, "command": "c"},
    ]
    parts = [samples_of(tmp_path / f"{k}.h5", 7 * k, 7 * (k + 1), **each) for k, each in enumerate(about)]
    merged(tmp_path / "all.h5", parts)
    assert described(tmp_path / "all.h5") == {
        "version": 1,
        "sampler": "ddim",
        "crop": "center",
        "latent_shift": [1, 2],
        "seed": [3, 1],
        "command": ["elbo sample a, b", "c"],
        "steps": [None, 4],
    }
    merged(tmp_path / "two.h5", parts[:2])
    merged(tmp_path / "three.h5", [tmp_path / "two.h5", parts[2]])
    assert described(tmp_path / "three.h5") == described(tmp_path / "all.h5")
    merged(tmp_path / "one.h5", parts[:1])
    assert described(tmp_path / "one.h5") == {"version": 1, **described(parts[0])}


@pytest.mark.parametrize(("key", "value"), [("crop", "none"), ("crop", None), ("filter", "lanczos")])
def test_samples_of_runs_that_saw_images_made_otherwise_are_no_one_dataset(
    key: str, value: Any, tmp_path: Path
) -> None:
    parts = [samples_of(tmp_path / "a.h5", 0, 5), samples_of(tmp_path / "b.h5", 5, 9, **{key: value})]
    with pytest.raises(DataError, match=rf"b\.h5: {key} is .*a\.h5"):
        merged(tmp_path / "out.h5", parts)


def test_a_part_whose_description_is_unreadable_is_named(tmp_path: Path) -> None:
    parts = [
        samples_of(tmp_path / "a.h5", 0, 5),
        write(tmp_path / "b.h5", "raw", 5, 9, samples='{"seed": 3} + {"seed": 4}'),
    ]
    with pytest.raises(FormatError, match=r"b\.h5: attribute samples is not usable"):
        merged(tmp_path / "out.h5", parts)


def test_a_damaged_part_is_found_and_good_ones_needn_t_be_copied_again(tmp_path: Path) -> None:
    parts, out = shards(tmp_path, "raw"), tmp_path / "out.h5"
    good = parts[2].read_bytes()
    with h5py.File(parts[2], "r+") as file:
        file["images"][7, 1, 2, 0] ^= 4
    with pytest.raises(DataError, match=r"part2\.h5: damaged: its images.*pack it again"):
        merged(out, parts)
    assert not out.exists()
    parts[2].write_bytes(good)
    with h5py.File(parts[1], "r+") as file:
        file["seeds"][0] ^= 1
    with pytest.raises(DataError, match=r"part1\.h5: damaged: its labels"):
        merged(out, parts)
    with h5py.File(parts[1], "r+") as file:
        file["seeds"][0] ^= 1
    assert "going on after 2 parts" in merged(out, parts)
    whole = write(tmp_path / "whole.h5", "raw", skipped=6, source_sha256=add_digests(DIGESTS))
    assert out.read_bytes() == whole.read_bytes()


def test_what_was_copied_of_an_unfinished_part_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else rows of a part that was damaged, and then replaced, would stay."""
    monkeypatch.setattr("elbocli.files.dataset.SCAN_BYTES", 400)
    parts, out = shards(tmp_path, "raw"), tmp_path / "out.h5"
    good = parts[2].read_bytes()
    with h5py.File(parts[2], "r+") as file:
        file["images"][0, 1, 2, 0] ^= 4
    with at_progress(stop_after(8)), pytest.raises(Stopped):
        merged(out, parts)
    parts[2].write_bytes(good)
    merged(out, parts)
    whole = write(tmp_path / "whole.h5", "raw", skipped=6, source_sha256=add_digests(DIGESTS))
    assert out.read_bytes() == whole.read_bytes()


SLOW = """
import sys, time
from pathlib import Path
from elbocli.files import dataset
dataset.SCAN_BYTES = 2000
from elbocli.merge.combine import merge_datasets
from elbocli.runtime.progress import show_progress_with
show_progress_with(lambda *_: time.sleep(0.004))
merge_datasets([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["raw", "webp"])
def test_killed_and_resumed_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.h5", kind, stop=400, skipped=6, source_sha256=add_digests(DIGESTS))
    parts = shards(tmp_path, kind, (0, 90, 180, 270, 400))
    draw, out, kills = np.random.default_rng(1), tmp_path / "out.h5", 0
    while not out.exists():
        process = subprocess.Popen([sys.executable, "-c", SLOW, str(out), *map(str, parts)])
        if kills < 5:
            while process.poll() is None and not (tmp_path / "out.h5.partial").exists():
                time.sleep(0.002)
            time.sleep(float(draw.random()) * 0.15)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
    assert kills >= 2 and out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.h5"]


def limited(size: int, *words: object) -> "subprocess.CompletedProcess[str]":
    """An elbo command that may not write files beyond `size` bytes."""
    code = f"import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nsys.argv[0] = 'elbo'\nfrom elbocli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_full_disk_fails_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    parts = shards(tmp_path, "raw", (0, 12, 23))
    result = limited(4000, "merge", tmp_path / "out.h5", *parts)
    assert result.returncode == 1 and "out.h5: could not" in result.stderr and "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part0.h5", "part1.h5"]


def test_a_disk_too_full_for_the_labels_alone_is_said_and_what_is_copied_stays(tmp_path: Path) -> None:
    parts, out = shards(tmp_path, "raw", (0, 12, 23)), tmp_path / "out.h5"
    result = limited(9000, "merge", out, *parts)
    assert result.returncode == 1 and "out.h5: could not write" in result.stderr and "Traceback" not in result.stderr
    assert "going on after 2 parts" in merged(out, parts)
    whole = write(tmp_path / "whole.h5", "raw", skipped=1, source_sha256=add_digests(DIGESTS[:2]))
    assert out.read_bytes() == whole.read_bytes()


def test_the_command_says_what_it_did(elbo: Callable[..., Any], tmp_path: Path) -> None:
    parts = shards(tmp_path, "raw")
    result = elbo("merge", "out.h5", *parts[::-1], cwd=tmp_path)
    assert result.returncode == 0 and result.stdout == b"" and b"23 images of 4 parts" in result.stderr
    assert (tmp_path / "out.h5").stat().st_size < 20_000
    again = elbo("merge", "out.h5", *parts, cwd=tmp_path)
    assert again.returncode == 2 and b"already exists" in again.stderr
    with pytest.raises(ElboError, match="no such dataset"):
        merged(tmp_path / "x.h5", [tmp_path / "gone.h5"])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_the_same_command_goes_on_with(sent: int, tmp_path: Path) -> None:
    parts, out = shards(tmp_path, "raw"), tmp_path / "out.h5"
    kill = at_progress(lambda done: os.kill(os.getpid(), sent) if done == 6 else None)
    with kill, pytest.raises(Interrupted, match=r"1 of 4 parts are safe in out\.h5\.partial") as told:
        merged(out, parts)
    assert told.value.exit_code == 128 + sent
    assert "going on after 1 parts" in merged(out, parts)


@pytest.mark.parametrize("options", [("--store", "raw"), ("--store", "png"), ("--store", "webp")])
def test_shards_of_prep_are_the_single_preps_file_but_for_the_command(
    options: tuple[str, str], elbo: Callable[..., Any], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for index in range(22):
        path = tmp_path / "src" / CLASSES[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Some transparent, and one that is no image: counts of both add up.
        shape = (10, 12, 4) if index % 5 == 0 else (10, 12, 3)
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(path)
    (tmp_path / "src" / "bee" / "bad.png").write_bytes(b"no image")
    line = ("prep", "src", "--size", 8, "--on-error", "skip", *options)
    for shard in (3, 1, 4, 2):
        assert elbo(*line, f"part{shard}.h5", "--shard", f"{shard}/4", cwd=tmp_path).returncode == 0
    assert elbo(*line, "whole.h5", cwd=tmp_path).returncode == 0
    assert elbo("merge", "out.h5", "part4.h5", "part1.h5", "part2.h5", "part3.h5", cwd=tmp_path).returncode == 0
    one, other = everything(tmp_path / "whole.h5"), everything(tmp_path / "out.h5")
    different = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert different == {"command", "contents_sha256"}
    assert one["skipped"] == 1 and ": 5" in one["changed"]
    assert one["payload_sha256"] == other["payload_sha256"]
    verified = elbo("info", "out.h5", "--verify", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
