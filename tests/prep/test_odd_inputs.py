"""Odd and hostile inputs: each does what tests/odd_inputs.py declares, alone, all together, and as typed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_inputs import HEAD, ODD, Odd, Outcome, described, open_folder, outcome, source_of
from packing import pack

PAGE = Path(__file__).parents[2] / "docs" / "odd-images.md"
FOUND: dict[str, Outcome] = {}
BY_NAME = {odd.name: odd for odd in ODD}


def found_for(odd: Odd) -> Outcome:
    if odd.name not in FOUND:
        with open_folder() as folder:
            FOUND[odd.name] = outcome(odd, folder)
            left = {path.name for path in folder.iterdir() if not path.name.startswith(("out.", "stop."))}
            assert left == {odd.name if odd.archive else "src"}, "something was unpacked"
    return FOUND[odd.name]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd.name))
def test_it_is_packed_or_refused_as_declared_and_listed(odd: Odd) -> None:
    found = found_for(odd)
    assert found.packed == odd.packed
    assert odd.pixels is None or np.array_equal(found.pixels, odd.pixels)
    assert found.packed or not found.says or odd.name in found.says
    listed = [json.loads(line) for line in found.skipped.splitlines()]
    assert any(f"{len(listed)} files skipped" in message for message in found.warned) == bool(listed)
    assert odd.archive or not listed or listed[0]["trouble"] in found.says


def test_the_page_in_the_docs_is_what_comes_out() -> None:
    lines = [described(odd, found_for(odd)) for odd in ODD]
    assert PAGE.read_text() == HEAD + "\n".join(lines) + "\n", "run make docs"


def test_all_of_them_together_are_packed(tmp_path: Path) -> None:
    odd_folder = tmp_path / "in" / "images" / "odd"
    odd_folder.mkdir(parents=True)
    sources = [tmp_path / "in" / "images"]
    for odd in ODD:
        if odd.archive and odd.packed:
            sources.append(tmp_path / "in" / odd.name)
        odd.put((tmp_path / "in" if odd.archive else odd_folder) / odd.name)
    before = sorted((tmp_path / "in").rglob("*"))
    said = pack(sources, tmp_path / "out.h5", size=8, on_error="skip")
    readable = sum(odd.nobody for odd in ODD) if os.geteuid() == 0 else 0
    assert any(f"out.h5: {sum(odd.packed for odd in ODD) + readable} images" in text for text in said)
    assert sorted((tmp_path / "in").rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.h5", "out.skipped.jsonl"]


@pytest.mark.parametrize("name", ["pipe.png", "bad\nlines.png", "encrypted.zip", "negative.tar"])
def test_a_refused_input_is_named_without_a_traceback(name: str, elbo: Callable[..., Any]) -> None:
    with open_folder() as folder:
        source = source_of(BY_NAME[name], folder)
        stopped = elbo("prep", source, folder / "a.h5", "--size", 8)
        skipped = elbo("prep", source, folder / "a.h5", "--size", 8, "--on-error", "skip")
    assert (stopped.returncode, stopped.stdout, skipped.returncode) == (1, b"", 0)
    *_, last = stopped.stderr.decode().splitlines()
    assert last.startswith("elbo prep: error: ") and name.replace("\n", r"\n") in last and "--on-error skip" in last
    assert b"Traceback" not in stopped.stderr + skipped.stderr
