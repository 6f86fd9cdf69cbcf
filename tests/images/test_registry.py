"""Kinds of image sources: a plug-in adds one, and elbo's own are each in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.files.dataset import Dataset

PLUGIN = """
import numpy as np
import elbocli.plugin as elbo

@elbo.source("pairs", magic=b"PK", suffix=".pairs")
def pairs(path):
    rows = np.memmap(path, np.uint8, "r", 2, (3, 8, 8, 1))
    for row in range(3):
        yield f"{row}", "even" if row % 2 == 0 else "odd", elbo.ArrayRow(rows, row)
"""


def test_a_plug_in_adds_a_kind_which_comes_before_elbos_own(elbo: Callable[..., Any], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    (tmp_path / "x.pairs").write_bytes(b"PK" + pixels.tobytes())  # it begins like a zip
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert elbo("prep", "x.pairs", "a.h5", cwd=tmp_path).returncode == 1
    done = elbo("prep", "x.pairs", "a.h5", "--plugin", "mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = Dataset(tmp_path / "a.h5")
    assert np.array_equal(data.batch(np.arange(3)), pixels)
    assert data.class_names == ["even", "odd"] and data.labels.tolist() == [0, 1, 0]
