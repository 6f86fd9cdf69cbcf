"""Every kind of dataset is read by plain h5py, by h5ls, and by the code that docs/datasets.md shows."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from elbocli.errors import FormatError
from elbocli.files.dataset import ENCODED, ENCODINGS, BlockLayout, DatasetWriter, encode
from elbocli.files.yaml_text import read_yaml

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"
KINDS = ("raw", "png", "webp", "latents")
BLOCK = {"raw": "images", "png": "encoded", "webp": "encoded", "latents": "latents"}


def rows_of(kind: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    if kind == "latents":
        return draw.normal(size=(12, 8, 4, 4)).astype(np.float16)
    return draw.integers(0, 256, (12, 8, 8, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """raw.h5, png.h5, webp.h5, latents.h5."""
    for kind in KINDS:
        rows = rows_of(kind)
        about: dict[str, Any] = {"num_classes": 3, "image_size": 8}
        if kind in ENCODINGS:
            layout, about = BlockLayout(ENCODED, (), 300), {**about, "store": kind, "channels": 3}
        else:
            layout = BlockLayout(BLOCK[kind], rows.shape[1:])
        with DatasetWriter(tmp_path / f"{kind}.h5", layout, 12, "test").held() as writer:
            writer.append([encode(row, kind) for row in rows] if kind in ENCODINGS else rows, 12, {})
            names = {"class_names": ["ant", "bee", "cat"], "files": [f"ä{i}.png" for i in range(12)]}
            writer.finish({"labels": np.arange(12) % 3}, names, about)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_h5py_reads_all_of_it(kind: str, folder: Path) -> None:
    with h5py.File(folder / f"{kind}.h5", "r") as file:
        assert file["labels"][:4].tolist() == [0, 1, 2, 0] and file.attrs["format"] == "elbo-dataset"
        assert file["files"].asstr()[3] == "ä3.png"
        block = file[BLOCK[kind]]
        # No feature that a viewer may lack.
        assert block.chunks is None and block.compression is None and not block.external and not block.is_virtual
        if kind in ("raw", "latents"):
            assert np.array_equal(block[()], rows_of(kind))


@pytest.mark.skipif(shutil.which("h5ls") is None, reason="h5ls is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_h5ls_lists_it(kind: str, folder: Path) -> None:
    listed = subprocess.run(["h5ls", "-v", folder / f"{kind}.h5"], capture_output=True, text=True, check=True)
    found = {line.split()[0] for line in listed.stdout.splitlines() if " Dataset {" in line}
    offsets = {"offsets"} if kind in ENCODINGS else set()
    assert found == {"labels", BLOCK[kind], "class_names", "files"} | offsets
    assert "error" not in listed.stderr.lower()


@pytest.mark.parametrize("index", range(3))
def test_the_code_in_the_docs_does_what_it_says(index: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(folder)
    for store in ("png", "webp") if index == 1 else ("raw",):
        found: dict[str, Any] = {}
        exec(blocks[index].replace("png.h5", f"{store}.h5"), found)
        if index == 0:
            assert np.array_equal(found["images"], rows_of("raw")[:8]) and found["names"][:2].tolist() == ["ant", "bee"]
        elif index == 1:
            assert np.array_equal(found["pixels"], rows_of(store)[5])
        else:
            assert np.array_equal(found["mapped"], rows_of("raw"))


def test_a_yaml_alias_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x [1, 2]\nb: *x\n")
    with pytest.raises(FormatError):
        read_yaml(tmp_path / "a.yaml")
