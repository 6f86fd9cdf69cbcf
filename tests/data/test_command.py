"""`elbo prep` as typed: its choices, what it refuses, and the same bytes after it was killed or ended by a signal."""

import os
import signal
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from calls import Stopped, largest_file, pack, stop_after
from PIL import Image

from elbocli.commands.prep import prep as command
from elbocli.data import pack as prep
from elbocli.data.decode import CROPS
from elbocli.errors import Interrupted
from elbocli.files.dataset import Dataset

Elbo = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_choices_are_those_declared():
    kind = next(param.type for param in command.params if param.name == "crop")
    assert isinstance(kind, click.Choice) and list(kind.choices) == list(CROPS)


MISTAKES = """
2 | SRC...              |
2 | SRC...              | digits.h5
2 | out: name a file    | digits out
2 | more: name a file   | digits more
1 | nowhere             | nowhere a.h5
1 | no folder no/where  | digits no/where/a.h5
1 | text.txt            | text.txt a.h5
2 | another name        | old.h5 old.h5
2 | --overwrite         | digits old.h5
2 | float > 0           | digits a.h5 --subset val 0
1 | gone.csv            | digits a.h5 --labels gone.csv
1 | left of 300         | digits a.h5 --size 8 --subset val 0.001
1 | 8 x 8 pixels        | digits a.h5 --size 16 --crop none
2 | edm2 | digits out.h5 --latent-convention foo
"""
"""Exit code, word of the message, and what is typed."""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_mistakes_are_told_and_leave_nothing(elbo, digits_folder, tmp_path, line):
    code, word, args = (cell.strip() for cell in line.split("|"))
    (tmp_path / "digits").symlink_to(digits_folder)
    (tmp_path / "more").mkdir()
    for name in ("text.txt", "old.h5"):
        (tmp_path / name).write_text("text")
    result = elbo("prep", *args.split(), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (int(code), b"") and word in result.stderr.decode(), result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "more", "text.txt", "old.h5"}
    assert (tmp_path / "old.h5").read_text() == "text"


def test_several_sources_classes_and_a_subset_from_the_command_line(elbo, digits_folder, tmp_path):
    (tmp_path / "classes.txt").write_text("3 three\n1 one\n")
    folders = [digits_folder / name for name in "134"]
    options = {"--size": 4, "--channels": 3, "--class-names": "classes.txt"}
    words = [word for pair in options.items() for word in pair]
    result = elbo("prep", *folders, "out.h5", *words, "--subset", "val", "0.25", cwd=tmp_path)
    assert result.returncode == 0 and b"left out (4)" in result.stderr, result.stderr
    data = Dataset(tmp_path / "out.h5")
    counts = [round(0.25 * len(list(folder.iterdir()))) for folder in (folders[1], folders[0])]
    assert data.shape == (sum(counts), 4, 4, 3) and data.class_names == ["three", "one"]
    assert np.bincount(data.labels).tolist() == counts
    assert data.attributes.more["subset"] == "val 0.25"
    assert data.attributes.command.startswith("elbo prep")


# Kills, signals and full disks

KILLED = """
import io, tarfile
import numpy as np
from PIL import Image
from elbocli.data import pack as prep
from elbocli.data.settings import PrepSettings

folder, source = Path(sys.argv[1]), sys.argv[2]
draw = np.random.default_rng(0)
for label in ("ant", "bee"):
    (folder / "src" / label).mkdir(parents=True)
    for index in range(4):
        noise = Image.fromarray(draw.integers(0, 255, (9, 12, 3), np.uint8))
        noise.save(folder / "src" / label / f"{index}.png")
    (folder / "src" / label / "1.png").write_bytes(b"broken")
    with tarfile.open(folder / f"{label}.tar", "w") as tar:
        tar.add(folder / "src" / label, ".")
with tarfile.open(folder / "all.tar", "w") as tar:
    for label in ("ant", "bee"):
        tar.add(folder / f"{label}.tar", f"{label}.tar")
prep.SAFE_EVERY_S = 0.0

def pack(out, source):
    prep.pack_images([folder / source], folder / out, PrepSettings(size=8, on_error="skip"))

pack("whole.h5", "src")
k, resumed = 0, 0
while crashed(lambda: pack("out.h5", source), k):
    resumed += (folder / "out.h5.partial.json").exists()
    if not (folder / "out.h5").exists():
        pack("out.h5", source)
    for end in ("h5", "skipped.jsonl"):
        assert (folder / f"out.{end}").read_bytes() == (folder / f"whole.{end}").read_bytes(), k
    for left in folder.glob("out.*"):
        left.unlink()
    k += 17
print(resumed)
"""


@pytest.mark.parametrize("source", ["src", "all.tar"])
def test_killed_at_its_steps_and_resumed_the_bytes_are_the_same(source, tmp_path, crashes):
    assert int(crashes(KILLED, tmp_path, source)) >= 2


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """300 images, by links: 59 MB of pixels at size 256."""
    folder = tmp_path / "src"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).resize((160, 160)).save(folder / "0.jpg")
    for index in range(1, 300):
        os.link(folder / "0.jpg", folder / f"{index}.jpg")
    return folder


def test_the_disk_is_claimed_at_once_and_a_full_one_left_empty(elbo, photographs, tmp_path):
    out = tmp_path / "out.h5"
    with largest_file(500_000):
        result = elbo("prep", photographs, out, "--size", 64)
    assert result.returncode == 1 and b"File too large" in result.stderr
    assert os.listdir(tmp_path) == ["src"]
    with pytest.raises(Stopped):
        pack(photographs, out, at=stop_after(1), size=64)
    assert (tmp_path / "out.h5.partial").stat().st_blocks * 512 >= 300 * 64 * 64


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_images_that_are_done(number, photographs, tmp_path, request):
    before = signal.signal(number, signal.SIG_DFL)  # SIGHUP is ignored under nohup
    request.addfinalizer(lambda: signal.signal(number, before))
    with pytest.raises(Interrupted, match=r"of 300 .*out\.h5\.partial") as told:
        pack(photographs, tmp_path / "out.h5", at=lambda done: done == 9 and os.kill(os.getpid(), number), size=16)
    assert told.value.exit_code == 128 + number
    messages = pack(photographs, tmp_path / "out.h5", size=16)
    assert any(message.startswith("going on after") for message in messages)
    assert len(Dataset(tmp_path / "out.h5")) == 300


def test_memory_does_not_grow_with_the_images(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(prep, "SAFE_EVERY_BYTES", 1 << 20)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2))
    tracemalloc.start()
    pack(photographs, tmp_path / "out.h5", size=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
