"""Odd inputs through the command line: exit code, both streams, and what is left behind."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_inputs import ODD, open_folder, source_of

BY_NAME = {odd.name: odd for odd in ODD}


@pytest.mark.parametrize("name", ["cut.png", "pipe.png", "bad\nlines.png", "encrypted.zip", "negative.tar"])
def test_a_refused_input_is_named_once_without_a_traceback(name: str, elbo: Callable[..., Any]) -> None:
    odd = BY_NAME[name]
    with open_folder() as folder:
        source = source_of(odd, folder)
        stopped = elbo("prep", source, folder / "a.h5", "--size", 8, timeout=20)
        skipped = elbo("prep", source, folder / "b.h5", "--size", 8, "--on-error", "skip", "-v", timeout=20)
        assert (stopped.returncode, stopped.stdout) == (1, b"")
        *_, last = stopped.stderr.decode().splitlines()
        assert last.startswith("elbo prep: error: ") and name.replace("\n", r"\n") in last
        assert "--on-error skip" in last and b"Traceback" not in stopped.stderr
        assert not (folder / "a.h5").exists()
        assert skipped.returncode == 0 and (folder / "b.h5").exists()
        assert b"Traceback" not in skipped.stderr and skipped.stdout == b""
        if (folder / "b.skipped.jsonl").exists():
            (line,) = (folder / "b.skipped.jsonl").read_text().splitlines()
            assert json.loads(line)["trouble"] in last


@pytest.mark.parametrize("name", ["outside.tar", "outside.zip"])
def test_nothing_is_written_where_an_archive_leads(name: str, elbo: Callable[..., Any]) -> None:
    with open_folder() as folder:
        inside = folder / "deep" / "deeper"
        inside.mkdir(parents=True)
        source = source_of(BY_NAME[name], inside)
        assert elbo("prep", source, inside / "a.h5", "--size", 8, cwd=inside).returncode == 0
        assert sorted(path.name for path in folder.rglob("*")) == ["a.h5", "deep", "deeper", name]
