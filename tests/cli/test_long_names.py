"""Names that are longer than a file system has, or leave no room for what elbo adds to them: a sentence, and nothing half made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

READ = [
    "prep {0} x.h5",
    "train {0} -o x",
    "train {data} -o x --preset {0}",
    "adapt {0}",
    "sample {0} -n 1 --steps 1 -o x.npy",
    "bound {0}",
    "ema {0} --std .1 -o x.safetensors",
    "eval {0} --ref {data} --extractor elbo-tiny",
    "info {0}",
    "report {0} -o x.html",
    "presets show {0}",
]
WRITE = {
    "prep {images} {0}": ".h5",
    "merge {0} {data}": ".h5",
    "train {data} --preset {preset} --steps 1 -o {0}": "",
    "adapt {run} -o {0}": ".yaml",
    "sample {run} -n 1 --steps 1 -o {0}": ".npy",
    "info {data} --grid {0}": ".png",
    "report {run} -o {0}": ".html",
    "weights plot sigmoid -o {0}": ".svg",
    "presets write digits {0}": ".yaml",
}
"""Command lines, and how the name of what they write ends."""
Elbo = Callable[..., Any]


@pytest.fixture
def places(digits: Path, digits_folder: Path, preset: Path, trained: Path) -> dict[str, Path]:
    """The names that command lines have for files."""
    return {"data": digits, "images": digits_folder, "preset": preset, "run": trained}


def refused(done: Any, folder: Path) -> None:
    """Check that a command ended with a sentence, and has made nothing."""
    assert done.returncode in (1, 2) and b"Traceback" not in done.stderr and b" error: " in done.stderr, done
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("line", READ, ids=lambda line: line.split("{0}")[0])
def test_what_is_to_be_read(line: str, elbo: Elbo, places: dict[str, Path], tmp_path: Path) -> None:
    refused(elbo(*line.format("n" * 300, **places).split(), cwd=tmp_path), tmp_path)


@pytest.mark.parametrize("length", [250, 255, 300])
@pytest.mark.parametrize("line", WRITE, ids=lambda line: line.split()[0])
def test_what_is_to_be_written(line: str, length: int, elbo: Elbo, places: dict[str, Path], tmp_path: Path) -> None:
    name = "n" * (length - len(WRITE[line])) + WRITE[line]
    done = elbo(*line.format(name, **places).split(), cwd=tmp_path)
    if done.returncode or length > 255:
        refused(done, tmp_path)
    else:
        assert [path.name for path in tmp_path.iterdir()] == [name]
