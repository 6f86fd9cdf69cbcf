"""The files that commands may write, and replace with --overwrite: their own kind, no input, nothing of a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from harness import Result

from elbocli.cli.commands import Command, Output
from elbocli.errors import DataError, UsageError
from elbocli.files.recognise import FOLDER, check_outputs
from elbocli.main import elbo as program


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def shelf(trained: Path, digits: Path, digits_folder: Path, tmp_path: Path) -> Path:
    """A folder with a run, a dataset, images, and files of nobody's."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copy(digits, tmp_path / "data.h5")
    shutil.copytree(digits_folder / "1", tmp_path / "photos")
    for name in (
        "mine.yaml",
        "mine.svg",
        "mine.md",
        "mine.safetensors",
        "mine.npz",
        "mine.html",
        "mine.tsv",
        "mine.json",
    ):
        (tmp_path / name).write_text("mine")
    return tmp_path


REFUSED = [
    "sample run -n 2 --steps 1 -o run",
    "sample run -n 2 --steps 1 -o run/checkpoints",
    "sample run -n 2 --steps 1 -o run/previews/step-00000040.png",
    "sample run -n 2 --steps 1 -o photos",
    "sample run -n 2 --steps 1 -o data.h5",
    "sample run/checkpoints/step-00000040 -n 2 --steps 1 -o run",
    "ema run --std .1 -o data.h5",
    "ema run --std .1 -o run/checkpoints/step-00000040/model.safetensors",
    "ema run --std .1 -o mine.safetensors",
    "report run -o run/config.yaml",
    "report run -o mine.html",
    "adapt run/losslog.jsonl -o run/losslog.jsonl",
    "adapt run -o mine.yaml",
    "adapt run -o new.yaml --plot mine.svg",
    "grid run -o mine.yaml",
    "optimum data.h5 -n 4 -o mine.json",
    "optimum data.h5 -n 4 -o data.h5",
    "bound run -n 4 --log run/losslog.jsonl",
    "bound run -n 4 --curve data.h5",
    "bound run -n 4 --per-image mine.tsv",
    "bound run -n 4 --curve new.tsv --per-image new.tsv",
    "eval data.h5 --ref data.h5 --extractor elbo-tiny --save-stats mine.npz",
    "eval data.h5 --ref data.h5 --extractor elbo-tiny --card mine.md",
    "weights plot -o mine.svg",
    "presets write digits mine.yaml",
    "prep data.h5 data.h5",
    "prep photos run/../data.h5/../data.h5 data.h5",
    "merge data.h5 data.h5",
    "train data.h5 -o run --steps 50 --log-to run/losslog.jsonl",
    "train data.h5 -o run --steps 50 --log-to run/metrics.jsonl",
    "train data.h5 -o fresh --log-to fresh/metrics.jsonl",
]


def test_overwriting_changes_nothing_but_what_the_command_writes(elbo: Any, shelf: Path) -> None:
    before = tree(shelf)
    for line in REFUSED:
        result: Result = elbo(*line.split(), "--overwrite", cwd=shelf)
        assert result.returncode in (1, 2) and b"Traceback" not in result.stderr, (line, result)
        assert result.stderr.count(b"error:") == 1 and tree(shelf) == before, line


REPEATED = [
    "sample run -n 2 --steps 1 -o {}",
    "sample run -n 2 --steps 1 -o {}.h5",
    "sample run -n 2 --steps 1 -o {}.npz",
    "sample run -n 2 --steps 1 -o run/{}.png",
    "report run -o run/{}.html",
    "adapt run -o run/{}.yaml --plot {}.pdf",
    "bound run -n 4 --log {}.jsonl --curve {}.tsv --plot {}.svg",
    "bound run -n 4 --per-image {}.tsv",
    "eval data.h5 --ref data.h5 --extractor elbo-tiny --metrics fid --save-stats {}.npz --save-features {}.safetensors --card {}.md",
    "optimum data.h5 -n 4 -o {}.json",
    "presets write digits {}.yaml",
    "prep photos {}.h5 --size 8",
    "merge {}.h5 data.h5",
]


def test_a_command_replaces_its_own_results(elbo: Any, shelf: Path) -> None:
    for number, line in enumerate(REPEATED):
        words = line.format(*[f"out{number}"] * line.count("{}")).split()
        assert elbo(*words, cwd=shelf).returncode == 0, line
        before = tree(shelf)
        again = elbo(*words, cwd=shelf)
        assert again.returncode == 2 and b"--overwrite" in again.stderr and tree(shelf) == before, line
        done = elbo(*words, "--overwrite", cwd=shelf)
        assert done.returncode == 0 and tree(shelf).keys() == before.keys(), (line, done.stderr)


def commands(group: click.Group) -> Iterator[click.Command]:
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        assert found is not None
        yield from commands(found) if isinstance(found, click.Group) else [found]


def test_every_option_that_names_a_file_to_write_is_checked() -> None:
    """Those who say that a command replaces an output have one, and all -o are such."""
    for command in commands(program):
        assert isinstance(command, Command)
        outputs = [param.name for param in command.params if isinstance(param.type, Output)]
        named = {param.name for param in command.params} & {
            "out",
            "plot",
            "card",
            "grid",
            "curve",
            "per_image",
            "neighbours",
        }
        if command.name != "train":  # its -o is a run, which it continues
            assert named <= {*outputs}, command.name
            assert ("overwrite" in {param.name for param in command.params}) == (outputs not in ([], ["run"])), (
                command.name
            )


def test_kinds(tmp_path: Path) -> None:
    def refused(path: Path, *kinds: str, overwrite: bool = True) -> bool:
        try:
            check_outputs([(path, kinds)], [], overwrite)
        except (UsageError, DataError):
            return True
        return False

    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("empty", "dangling"):
        assert refused(tmp_path / name, "a page", overwrite=False) and not refused(tmp_path / name, "a page")
    assert not refused(tmp_path / "new", "a page", overwrite=False)
    assert refused(tmp_path, "a page") and refused(tmp_path / "none" / "file", "a page")
    assert not refused(tmp_path / "none" / "folder", FOLDER) and refused(tmp_path / "empty", FOLDER)
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "000000.png").touch()
    assert not refused(tmp_path / "drawn", FOLDER) and refused(tmp_path / "drawn.h5", overwrite=False) is False
    (tmp_path / "drawn" / "notes.txt").touch()
    assert refused(tmp_path / "drawn", FOLDER)
