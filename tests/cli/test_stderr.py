"""Messages show names that would move a terminal's cursor escaped, and say what to do about names that are too long."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Elbo = Callable[..., Any]
NASTY = "a\n\x1b[31mred\r\x07\u202eb\x9b"
SHOWN = "a\\n\\x1b[31mred\\r\\x07\\u202eb\\x9b"


@pytest.mark.parametrize(
    "line",
    [
        ["sample", NASTY],
        ["info", NASTY],
        ["train", NASTY],
        ["weights", "check", NASTY],
        ["train", "DATA", "-o", NASTY, "--preset", "nothing"],
        ["sample", "RUN", "--classes", NASTY],
        [NASTY],
        ["sample", "RUN", f"--{NASTY}"],
    ],
    ids=lambda line: " ".join(line[:2]).replace(NASTY, "NASTY"),
)
def test_errors_show_names_escaped(line: list[str], elbo: Elbo, trained: Path, digits: Path, tmp_path: Path) -> None:
    places = {"RUN": str(trained), "DATA": str(digits)}
    done = elbo(*[places.get(word, word) for word in line], cwd=tmp_path)
    said = done.stderr.decode()
    assert done.returncode in (1, 2)
    assert all(text.isprintable() for text in said.split("\n")) and said.count("\n") == 1
    assert "red" in said or "nothing" in said


def test_progress_and_info_show_them_escaped_too(
    elbo: Elbo, trained: Path, digits_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / NASTY)
    drawn = elbo("sample", NASTY, "-n", 1, "--steps", 2, "-o", "x.npz", cwd=tmp_path)
    assert drawn.returncode == 0 and SHOWN in drawn.stderr.decode()
    told = elbo("info", "x.npz", cwd=tmp_path).stdout.decode()
    assert SHOWN in told and all(text.isprintable() for text in told.split("\n"))


TOO_LONG = "n" * 300
LINES = [
    ["sample", TOO_LONG],
    ["bound", TOO_LONG],
    ["report", TOO_LONG],
    ["ema", TOO_LONG, "--std", "0.1", "-o", "x"],
    ["info", TOO_LONG],
    ["info", TOO_LONG, "--verify"],
    ["adapt", TOO_LONG],
    ["train", TOO_LONG],
    ["train", "DATA", "--preset", f"{TOO_LONG}.yaml"],
    ["train", "DATA", "--config", TOO_LONG],
    ["train", "DATA", "--schedule", f"{TOO_LONG}.yaml"],
    ["train", "DATA", "--weighting", f"{TOO_LONG}.json"],
    ["train", "DATA", "--val", TOO_LONG],
    ["train", "DATA", "--plugin", f"{TOO_LONG}.py"],
    ["train", "DATA", "-o", TOO_LONG],
    ["prep", TOO_LONG, "x.h5"],
    ["prep", "SRC", f"{TOO_LONG}.h5"],
    ["prep", "SRC", "x.h5", "--latents", TOO_LONG],
    ["merge", "x.h5", TOO_LONG],
    ["merge", f"{TOO_LONG}.h5", "DATA"],
    ["eval", TOO_LONG, "--ref", "DATA"],
    ["eval", "DATA", "--ref", TOO_LONG],
    ["eval", "DATA", "--ref", "DATA", "--extractor", f"{TOO_LONG}.pt2"],
    ["eval", "DATA", "--extractor", "elbo-tiny", "--save-stats", f"{TOO_LONG}.npz"],
    ["sample", "RUN", "--ema", TOO_LONG],
    ["sample", "RUN", "--guide", TOO_LONG, "--guidance", "2"],
    *(
        ["sample", "RUN", "-n", "1", "--steps", "2", "-o", TOO_LONG + end]
        for end in ("", ".npy", ".npz", ".h5", ".png")
    ),
    ["adapt", "RUN", "-o", TOO_LONG],
    ["report", "RUN", "-o", f"{TOO_LONG}.html"],
    ["weights", "plot", "elbo", "-o", f"{TOO_LONG}.svg"],
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line).replace(TOO_LONG, "LONG"))
def test_a_name_that_is_too_long_is_refused_in_a_sentence(
    line: list[str], elbo: Elbo, trained: Path, digits: Path, digits_folder: Path, tmp_path: Path
) -> None:
    places = {"RUN": str(trained), "DATA": str(digits), "SRC": str(digits_folder)}
    done = elbo(*[places.get(word, word) for word in line], cwd=tmp_path)
    said = done.stderr.decode().splitlines()[-1]
    assert done.returncode in (1, 2) and b"Traceback" not in done.stderr
    assert " error: " in said and ("too long" in said.lower() or f"no average '{TOO_LONG}'" in said)


@pytest.mark.parametrize("name", [".npy", ".npz", ".h5", ".png", ""])
def test_an_output_may_have_as_long_a_name_as_the_message_says(
    name: str, elbo: Elbo, trained: Path, tmp_path: Path
) -> None:
    line = ("sample", trained, "-n", 1, "--steps", 2, "-o")
    refused = elbo(*line, "n" * (254 - len(name)) + name, cwd=tmp_path)
    most = re.search(rb"at most (\d+) bytes", refused.stderr)
    assert refused.returncode == 1 and most is not None, refused.stderr
    done = elbo(*line, "n" * (int(most[1]) - len(name)) + name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [len(os.fsencode(path.name)) for path in tmp_path.iterdir()] == [int(most[1])]
