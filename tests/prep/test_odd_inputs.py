"""Odd and hostile inputs: each does what tests/odd_inputs.py declares, alone and all together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_inputs import ODD, Odd, Outcome, described, open_folder, outcome

ROOT = Path(__file__).parents[2]
IMAGES = [odd for odd in ODD if not odd.archive]
FOUND: dict[str, Outcome] = {}


@pytest.fixture(params=ODD, ids=lambda odd: odd.name.encode("ascii", "backslashreplace").decode())
def odd(request: pytest.FixtureRequest) -> Odd:
    return request.param


def found_for(odd: Odd) -> Outcome:
    if odd.name not in FOUND:
        with open_folder() as folder:
            FOUND[odd.name] = outcome(odd, folder)
            source = odd.name if odd.archive else "src"
            left = {path.name for path in folder.iterdir() if not path.name.startswith(("out.", "stop."))}
            assert left == {source}, "something was unpacked"
    return FOUND[odd.name]


def test_it_is_packed_or_refused_as_declared(odd: Odd) -> None:
    found = found_for(odd)
    assert found.packed == odd.packed
    if odd.pixels is not None:
        assert np.array_equal(found.pixels, odd.pixels)


def test_something_is_said_where_that_is_declared(odd: Odd) -> None:
    found = found_for(odd)
    assert bool(odd.says) == bool(found.says)
    if not odd.packed and odd.says:
        assert odd.name in found.says


def test_what_is_skipped_is_listed_with_its_trouble(odd: Odd) -> None:
    found = found_for(odd)
    listed = [json.loads(line) for line in found.skipped.splitlines()]
    assert any(f"{len(listed)} files skipped" in message for message in found.warned) == bool(listed)
    if found.says.endswith("; remove it, or add --on-error skip") and (found.packed or not odd.archive):
        assert listed[0]["trouble"] in found.says


def test_the_page_in_the_docs_is_what_comes_out() -> None:
    page = (ROOT / "docs" / "odd-images.md").read_text()
    made = [described(odd, found_for(odd)) for odd in ODD]
    assert page.splitlines()[-len(made) :] == made, "run make docs"


# All together

PACK = """
import sys
from pathlib import Path
from packing import pack
for text in pack([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]), size=8, on_error="skip"):
    print(text.encode("ascii", "backslashreplace").decode())
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """(a folder with every odd file in one class and every archive of tar beside them, the sources to pack)."""
    folder = tmp_path_factory.mktemp("everything") / "in"
    (folder / "images" / "odd").mkdir(parents=True)
    sources = [folder / "images"]
    for odd in ODD:
        if odd.archive:
            odd.put(folder / odd.name)
            if odd.packed:
                sources.append(folder / odd.name)
        else:
            odd.put(folder / "images" / "odd" / odd.name)
    return folder, sources


def test_all_of_them_together_are_packed(everything: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder, sources = everything
    before = sorted(folder.rglob("*"))
    line = [sys.executable, "-c", PACK, str(tmp_path / "out.h5"), *map(str, sources)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr
    readable = sum(odd.nobody for odd in ODD) if os.geteuid() == 0 else 0
    assert f"out.h5: {sum(odd.packed for odd in ODD) + readable} images" in done.stdout
    assert sorted(folder.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "out.skipped.jsonl"]
