"""`elbo prep` as typed: its choices, what it says, and what it says to those who mistype it."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from packing import Stopped, at_progress, pack, stop_after

from elbocli.cli import progress_bar
from elbocli.cli.commands import Command
from elbocli.errors import ElboError
from elbocli.files.dataset import ENCODINGS, RAW, Dataset
from elbocli.images.decode import CROPS
from elbocli.prep import pack as prep
from elbocli.prep.command import prep as command
from elbocli.runtime.progress import progress

Elbo = Callable[..., subprocess.CompletedProcess[bytes]]


def choices(name: str) -> list[str]:
    (kind,) = (param.type for param in command.params if param.name == name)
    assert isinstance(kind, click.Choice)
    return list(kind.choices)


def test_choices_are_what_is_declared() -> None:
    assert choices("crop") == list(CROPS)
    assert choices("store") == [RAW, *ENCODINGS]


def test_help_names_each_crop() -> None:
    (text,) = (param.help for param in command.params if param.name == "crop" and isinstance(param, click.Option))
    assert text is not None and all(f"{name}: " in text for name in CROPS)


@pytest.mark.parametrize(
    ("args", "code", "complaint"),
    [
        ([], 2, "Missing argument 'SRC...'"),
        (["digits.h5"], 2, "Missing argument 'SRC...'"),
        (["digits", "out"], 2, "out: name a file that ends in .h5"),
        (["digits", "more"], 2, "more: name a file that ends in .h5"),
        (["nowhere", "a.h5"], 1, "nowhere: no usable file"),
        (["digits", "no/where/a.h5"], 1, "no/where/a.h5: there is no folder no/where; make it first"),
        (["text.txt", "a.h5"], 1, "text.txt: is none of"),
        (["old.h5", "old.h5"], 2, "old.h5: is read by this command; choose another name"),
        (["digits", "a.h5", "--shard", "3/2"], 2, "'3/2' is not I/N"),
        (["digits", "a.h5", "--subset", "val", "0"], 2, "expected float > 0"),
        (["digits", "a.h5", "--labels", "gone.csv"], 1, "gone.csv: no usable file"),
        (
            ["digits", "a.h5", "--size", "8", "--crop", "none", "--subset", "val", "0.001"],
            1,
            "no images are left of 300",
        ),
    ],
)
def test_mistakes_are_told_what_to_do(
    elbo: Elbo, digits_folder: Path, tmp_path: Path, args: list[str], code: int, complaint: str
) -> None:
    (tmp_path / "digits").symlink_to(digits_folder)
    (tmp_path / "more").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "old.h5").write_text("old")
    result = elbo("prep", *args, cwd=tmp_path)
    assert result.returncode == code and complaint in result.stderr.decode(), result.stderr
    assert result.stdout == b"" and b"Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "more", "text.txt", "old.h5"}
    assert (tmp_path / "old.h5").read_text() == "old"


def test_several_sources_labels_classes_and_a_subset_from_the_command_line(
    elbo: Elbo, digits_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("3 three\n1 one\n")
    folders = [digits_folder / "1", digits_folder / "3", digits_folder / "4"]
    result = elbo(
        "prep",
        *folders,
        "out.h5",
        "--size",
        8,
        "--channels",
        1,
        "--classes",
        "classes.txt",
        "--subset",
        "val",
        "0.25",
        "--shuffle-seed",
        1,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert b"of classes that classes.txt doesn't list are left out (4)" in result.stderr
    data = Dataset(tmp_path / "out.h5")
    counts = [round(0.25 * len(list(folder.iterdir()))) for folder in (folders[1], folders[0])]
    assert data.class_names == ["three", "one"] and [data.labels.tolist().count(k) for k in (0, 1)] == counts
    assert data.attributes.more["subset"] == "val 0.25" and data.attributes.more["shuffle_seed"] == 1
    assert data.attributes.command.startswith("elbo prep")


def test_a_folder_packed_into_itself_again_and_again(elbo: Elbo, digits_folder: Path, tmp_path: Path) -> None:
    for path in sorted((digits_folder / "1").iterdir())[:4]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("a.h5", "b.h5"):
        assert elbo("prep", ".", name, "--size", 8, cwd=tmp_path).returncode == 0
    assert elbo("prep", ".", "a.h5", "--size", 8, "--overwrite", cwd=tmp_path).returncode == 0
    assert len(Dataset(tmp_path / "a.h5")) == len(Dataset(tmp_path / "b.h5")) == 4


def messages(source: Path, out: Path, **settings: Any) -> list[str]:
    return pack(source, out, size=8, **settings)


def test_the_advice_on_a_bad_image_is_good(digits_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for index, path in enumerate(sorted((digits_folder / "1").iterdir())[:6]):
        (source / f"{index}.png").write_bytes(path.read_bytes())
    good = (source / "3.png").read_bytes()
    for repair in (True, False):
        (source / "3.png").write_text("not an image")
        with pytest.raises(ElboError, match=r"3\.png: .*; put it right, or add --on-error skip to go on without it"):
            messages(source, tmp_path / "a.h5")
        if repair:
            (source / "3.png").write_bytes(good)
        said = messages(source, tmp_path / "a.h5", on_error="stop" if repair else "skip")
        assert "going on after 3 images" in said
        assert len(Dataset(tmp_path / "a.h5")) == 5 + repair
        (tmp_path / "a.h5").unlink()
    assert json.loads((tmp_path / "a.skipped.jsonl").read_text())["file"] == "3.png"


def test_what_was_skipped_is_not_kept_by_a_prep_that_stops(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for index, path in enumerate(sorted((digits_folder / "1").iterdir())[:6]):
        (source / f"{index}.png").write_bytes(path.read_bytes() if index != 1 else b"bad")
    with at_progress(stop_after(4)), pytest.raises(Stopped):
        monkeypatch.setattr(prep, "SAFE_EVERY_S", 0.0)
        messages(source, tmp_path / "a.h5", on_error="skip")
    with pytest.raises(ElboError, match=r"1\.png: .*not an image"):
        messages(source, tmp_path / "a.h5")
    assert any("going on" in text for text in messages(source, tmp_path / "a.h5", on_error="skip"))


def test_nothing_packed_leaves_nothing_behind(digits_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ElboError, match="8 x 8 pixels, but --crop none takes only those of --size 16"):
        pack(digits_folder, tmp_path / "a.h5", size=16, crop="none")
    assert list(tmp_path.iterdir()) == []
    messages(digits_folder, tmp_path / "a.h5", crop="none")


# Progress


def test_a_count_is_a_line_with_its_rate_time_left_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: 10.0 * next(clock))
    monkeypatch.setattr(Command, "path", "elbo prep")
    monkeypatch.setattr(Command, "quiet", False)
    with progress_bar.shown_on_stderr():
        for done in (0, 100):
            progress(done, 1000, "img", loss=2.5)
    (*_, last) = capsys.readouterr().err.splitlines()
    assert last.startswith("elbo prep: 100/1000 img, ") and "10.00img/s, 01:30 left" in last and "loss=2.5" in last
