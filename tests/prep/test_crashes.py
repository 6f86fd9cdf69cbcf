"""prep killed at any moment, parent or worker thread, goes on and gives the bytes of an undisturbed run."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packing import Stopped, at_progress, pack, stop_after
from PIL import Image

from elbocli.errors import Interrupted

DRIVER = """
import io, os, random, sys, tarfile, time
from pathlib import Path
import numpy as np
from PIL import Image
from elbocli.prep import pack as prep

folder, trials = Path(sys.argv[1]), int(sys.argv[2])
random.seed(trials)
draw = np.random.default_rng(0)
with tarfile.open(folder / "all.tar", "w") as whole:
    for label in ("ant", "bee", "cat"):
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w") as one:
            for index in random.sample(range(40), 40):
                buffer = io.BytesIO()
                noise = Image.fromarray(draw.integers(0, 255, (9, 12, 3), np.uint8))
                noise.resize((draw.integers(120, 300), draw.integers(120, 300))).save(buffer, "jpeg", quality=90)
                content = buffer.getvalue() if index % 13 else b"broken"
                path = folder / "src" / label / f"{index}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                info = tarfile.TarInfo(path.name)
                info.size = len(content)
                one.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo(f"{label}.tar")
        info.size = len(inner.getvalue())
        whole.addfile(info, io.BytesIO(inner.getvalue()))

prep.SAFE_EVERY_S = 0.005

def pack(source, out, store):
    prep.pack_images([source], out, prep.Settings(size=48, store=store, on_error="skip"))

want, span = {}, {}
for store in ("raw", "png", "webp"):
    begun = time.monotonic()
    pack(folder / "src", folder / f"{store}.h5", store)
    span[store] = time.monotonic() - begun
    want[store] = (folder / f"{store}.h5").read_bytes()

kills = resumed = 0
for trial in range(trials):
    source = folder / random.choice(["src", "all.tar"])
    store, out = random.choice(list(want)), folder / f"trial{trial}.h5"
    for attempt in range(50):
        pid = os.fork()
        if pid == 0:
            pack(source, out, store)
            os._exit(0)
        if attempt < 4:
            time.sleep(random.uniform(0, span[store]))
            try:
                victim = int(random.choice(os.listdir(f"/proc/{pid}/task")))
                os.kill(victim, 9)
            except (OSError, IndexError):
                pass
        killed = os.waitpid(pid, 0)[1] == 9
        kills += killed
        resumed += attempt and (folder / f"trial{trial}.h5").exists()
        if out.exists():
            break
        assert killed
    assert out.read_bytes() == want[store], (trial, source, store)
    assert len((folder / f"trial{trial}.skipped.jsonl").read_text().splitlines()) == 12
    for left in folder.glob(f"trial{trial}.*"):
        left.unlink()
print(kills, resumed)
"""


def crash(tmp_path: Path, trials: int, timeout: float) -> None:
    line = [sys.executable, "-c", DRIVER, str(tmp_path), str(trials)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    kills, resumed = map(int, done.stdout.split())
    assert kills > trials / 2 and resumed > trials / 4


def test_killed_preps_of_folders_and_tars_of_tars_give_the_same_bytes(tmp_path: Path) -> None:
    crash(tmp_path, 12, 200)


@pytest.mark.slow
def test_two_hundred_killed_preps_give_the_same_bytes(tmp_path: Path) -> None:
    crash(tmp_path, 200, 1800)


# A full disk


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """1000 images, by links: 49 MB of pixels at size 128."""
    folder = tmp_path / "src"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).resize((160, 160)).save(folder / "0.jpg")
    for index in range(1, 1000):
        os.link(folder / "0.jpg", folder / f"{index}.jpg")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """20 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def at_once(elbo: Callable[..., Any], run: Callable[[], Any]) -> Any:
    """What `run` gives within a second of a program's start; a busy machine may try three times."""
    for _ in range(3):
        begun = time.monotonic()
        assert elbo("prep", "nowhere", "x.h5").returncode == 1
        started = time.monotonic()
        result = run()
        if time.monotonic() - started < started - begun + 1:
            return result
    pytest.fail("took longer than a second")


@pytest.mark.parametrize("store", ["raw", "png", "webp"])
def test_a_disk_too_small_fails_at_once_and_leaves_nothing(
    store: str, elbo: Callable[..., Any], photographs: Path, small_disk: Path
) -> None:
    line = ["prep", photographs, small_disk / "out.h5", "--size", 128, "--store", store]
    result = at_once(elbo, lambda: elbo(*line))
    assert result.returncode == 1 and b"No space left on device" in result.stderr and b"Traceback" not in result.stderr
    assert os.listdir(small_disk) == []


def test_a_file_size_limit_fails_at_once_and_leaves_nothing(
    elbo: Callable[..., Any], photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    line = f"ulimit -f 20000; exec {sys.executable} -m elbocli prep {photographs} {out}/out.h5 --size 128"
    result = at_once(elbo, lambda: subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False))
    assert result.returncode == 1 and b"File too large" in result.stderr and b"Traceback" not in result.stderr
    assert os.listdir(out) == []


def test_the_disk_is_claimed(photographs: Path, tmp_path: Path) -> None:
    with at_progress(stop_after(1)), pytest.raises(Stopped):
        pack(photographs, tmp_path / "out.h5", size=512)
    assert (tmp_path / "out.h5.partial").stat().st_blocks * 512 > 700_000_000


# Signals, and two at once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_is_done(number: int, photographs: Path, tmp_path: Path) -> None:
    kill = at_progress(lambda done: os.kill(os.getpid(), number) if done < 9 else None)
    with (
        kill,
        pytest.raises(Interrupted, match=r"of 1000 images are safe in out\.h5\.partial; the same command") as told,
    ):
        pack(photographs, tmp_path / "out.h5", size=16)
    assert told.value.exit_code == 128 + number
    messages = pack(photographs, tmp_path / "out.h5", size=16)
    assert any(message.startswith("going on after") for message in messages)
    assert any("1000 images" in message for message in messages)


@pytest.mark.parametrize("store", ["raw", "png"])
def test_an_unfinished_file_that_was_cut_short_is_made_again(store: str, photographs: Path, tmp_path: Path) -> None:
    """Its images were black, with a digest that agreed, and nothing was said."""
    whole, out = tmp_path / "whole.h5", tmp_path / "out.h5"
    pack(photographs, whole, size=16, store=store)
    kill = at_progress(lambda done: os.kill(os.getpid(), signal.SIGTERM) if done == 1 else None)
    with kill, pytest.raises(Interrupted):
        pack(photographs, out, size=16, store=store)
    os.truncate(tmp_path / "out.h5.partial", 2200)
    said = pack(photographs, out, size=16, store=store)
    assert any("made again" in message for message in said)
    assert not any("going on after" in message for message in said)
    assert out.read_bytes() == whole.read_bytes()


def test_a_command_that_a_signal_ends_says_how_to_go_on(photographs: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "elbocli", "prep", str(photographs), str(tmp_path / "out.h5"), "--size", "256"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE)
    while not (tmp_path / "out.h5.partial").exists():
        time.sleep(0.01)
    second = subprocess.run(line, capture_output=True, timeout=60, check=False)
    assert second.returncode == 1 and b"another elbo process is writing it" in second.stderr
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM and b"the same command goes on from there" in stderr
    assert b"Traceback" not in stderr
    assert {path.name for path in tmp_path.iterdir()} == {"src", "out.h5.partial", "out.h5.partial.json"}


def test_memory_does_not_grow_with_the_images(photographs: Path, tmp_path: Path) -> None:
    code = "import sys; from elbocli.main import main; sys.argv[0] = 'elbo'; main()"
    peaks = []
    for limit in (100, 1000):
        line = [sys.executable, "-c", code, "prep", photographs, tmp_path / f"{limit}.h5", "--size", 256]
        child = os.spawnv(os.P_NOWAIT, sys.executable, [*map(str, line), "--limit", str(limit)])
        _, status, usage = os.wait4(child, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss)
    assert isinstance(usage, resource.struct_rusage)
    # 1000 images are 197 MB of pixels; what is not yet written is at most 16 MiB and some in flight.
    assert peaks[1] - peaks[0] < 40_000, peaks
