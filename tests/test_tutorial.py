"""The tutorial: its page is what was measured in the words of its template, and its commands run on a small dataset."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parent.parent
FASHION = ROOT / "examples" / "fashion"
SMALLER = {r"-n 100 ": "-n 20 ", r"-n \d{4,}": "-n 40", r"--limit \d+": "--limit 40", r"--steps 20": "--steps 2"}
"""All that the slow test changes of the page's commands."""
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FASHION / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the format of MNIST's files, compressed."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def write_small_dataset(folder: Path) -> None:
    """Digits of 28 pixels as the four files, 160 to learn from and 40 to judge by."""
    folder.mkdir()
    digits = load_digits()
    images = np.kron(digits.images[:200] * 15, np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    for name, rows in (("train", slice(160)), ("t10k", slice(160, 200))):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(images[rows]))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(digits.target[:200][rows]))


def demo(script: Path, *folders: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", script, *folders],
        env={**os.environ, "PATH": PATH, **environment},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def test_the_page_is_what_was_measured() -> None:
    writer = loaded("write_tutorial")
    figures = json.loads((ROOT / "docs" / "tutorial" / "figures.json").read_text())
    assert writer.page(figures) == (ROOT / "docs" / "tutorial.md").read_text(), "see examples/fashion/write_tutorial.py"
    del figures["output"]["pack"]
    with pytest.raises(UndefinedError, match="pack"):
        writer.page(figures)


def test_its_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "tutorial").glob("*.png"))
    assert len(pictures) == 4 and sum(path.stat().st_size for path in pictures) < 300_000


def test_long_outputs_lose_their_middle_only() -> None:
    writer = loaded("write_tutorial")
    lines = [f"line {k}" for k in range(20)]
    assert writer.ends("\n".join(lines), 4).splitlines() == [*lines[:2], "…", *lines[-2:]]
    assert writer.ends("\n".join(lines[:4]), 4) == "\n".join(lines[:4])
    assert [writer.minutes(t) for t in (0.2, 12, 89, 600)] == ["a second", "12 seconds", "89 seconds", "10 minutes"]


def test_a_block_that_ended_well_is_not_run_again_and_one_that_failed_is(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text(
        "```sh one\necho a >> a\necho said\n```\n```\nnot run\n```\n```sh two\necho b >> b\ntest -e c\n```\n"
    )
    line = [sys.executable, FASHION / "run_page.py", page, tmp_path]
    first = subprocess.run(line, capture_output=True, text=True, check=False)
    assert first.returncode == 1 and "two failed" in first.stderr
    (tmp_path / "c").touch()
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    assert (tmp_path / "a").read_text() == "a\n" and (tmp_path / "b").read_text() == "b\nb\n"
    one = json.loads((tmp_path / "steps" / "one.json").read_text())
    assert one["done"] and one["output"] == "said\n" and one["seconds"] > 0


def test_the_demo_says_which_file_is_missing(tmp_path: Path) -> None:
    write_small_dataset(tmp_path / "downloaded")
    (tmp_path / "downloaded" / "t10k-labels-idx1-ubyte.gz").unlink()
    result = demo(FASHION / "demo.sh", tmp_path / "downloaded", tmp_path / "out")
    assert result.returncode == 1 and "t10k-labels-idx1-ubyte.gz is not there" in result.stderr
    assert not (tmp_path / "out").exists()


def test_shellcheck_finds_nothing() -> None:
    result = subprocess.run(["shellcheck", FASHION / "demo.sh"], env={**os.environ, "PATH": PATH}, check=False)
    assert result.returncode == 0


@pytest.mark.slow
def test_the_commands_of_the_page_run_and_fill_it(tmp_path: Path) -> None:
    write_small_dataset(tmp_path / "downloaded")
    examples = shutil.copytree(ROOT / "examples", tmp_path / "examples")
    template = examples / "fashion" / "tutorial.md.j2"
    text = template.read_text()
    for pattern, other in SMALLER.items():
        text = re.sub(pattern, other, text)
    template.write_text(text)
    result = demo(
        examples / "fashion" / "demo.sh",
        tmp_path / "downloaded",
        tmp_path / "out",
        ELBO_TRAIN_STEPS="4",
        ELBO_TRAIN_PREVIEW_EVERY="2",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stdout and "error:" not in result.stdout
    for name in ("run/config.yaml", "schedule.yaml", "samples.h5", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    writer = [sys.executable, examples / "fashion" / "write_tutorial.py", tmp_path / "out", tmp_path / "docs"]
    subprocess.run(writer, check=True)
    page = (tmp_path / "docs" / "tutorial.md").read_text()
    commands = re.findall(r"^elbo .*", text, re.M)
    assert len(commands) > 8 and all(command in page for command in commands)
    for picture in re.findall(r"\]\((tutorial/\S+\.png)\)", page):
        with Image.open(tmp_path / "docs" / picture) as image:
            assert min(image.size) > 28
