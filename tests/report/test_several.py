"""Several runs on one page: each has its line on every plot, and only what differs is in the table."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_pages import BOUND, HOSTILE, Reader, beyond_numbers, change, just_begun

from elbocli.report.gather import RunFacts, differences, figures, gather, report_of
from elbocli.report.page import INKS, LINES, pictures, render, swatch


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[Path]:
    """Two runs of another weighting and batch; only the second has validation and a bound."""
    one, two = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("one", "two"))
    change(two, "settings", weighting="elbo", batch=8)
    (two / "validation.jsonl").write_bytes((two / "losslog.jsonl").read_bytes())
    values = {"val_loss": 0.5, "val_loss_se": 0.01, "val_bpd": 4.5, "val_bpd_se": 0.02}
    with open(two / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 40, "images": 640, **values}) + "\n")
    (two / "bound.json").write_text(json.dumps(BOUND))
    return [one, two]


def compared(*runs: Path) -> list[RunFacts]:
    return [gather(run) for run in runs]


def lines_of(svg: str) -> set[str]:
    """The colours of lines in a drawing."""
    return set(re.findall(r"stroke: var\(--(\w+)\)", svg)) & {INKS[line].removeprefix("--") for line in LINES}


def test_only_the_settings_that_differ_are_told(runs: list[Path]) -> None:
    found = compared(*runs)
    assert differences(found) == {
        "weighting": ["sigmoid:bias=2", "elbo"],
        "batch": [16, 8],
    }
    assert differences(compared(runs[0], runs[0])) == {}


def test_each_number_has_a_place_for_each_run(runs: list[Path]) -> None:
    rows = {name: values for (name, _), values in figures(compared(*runs)).items()}
    assert [each and each.value for each in rows["variational bound"]] == [None, 1.5]
    assert [each and each.value for each in rows["validation bound"]] == [None, 4.5]
    first, second = rows["training loss"]
    assert first and second and first.value == second.value
    assert "bits per dimension, ± 2 standard errors" in Reader(render(*compared(*runs))).text


def test_every_run_has_its_line_on_every_plot_and_no_two_are_alike(runs: list[Path]) -> None:
    both, second = {"one", "two"}, {"two"}
    assert {name: lines_of(svg) for name, svg in pictures(*compared(*runs)).items()} == {
        "weighting": both,
        "loss": both,
        "val_loss": second,
        "val_bpd": second,
        "profiles": both,
        "held_out": second,
    }
    assert len({swatch(index) for index in range(30)}) == 30


def test_losses_of_other_weightings_are_said_to_be_no_match(runs: list[Path]) -> None:
    other, same = (Reader(render(*compared(*each))).text for each in (runs, runs[:1] * 2))
    assert "can't be compared" in other and "can't be compared" not in same


def test_the_page_has_the_samples_of_each_and_needs_nothing_but_itself(runs: list[Path]) -> None:
    found = compared(*runs)
    page = render(*found)
    read = Reader(page)
    assert page == render(*compared(*runs)), "the same facts, the same text"
    for facts in found:
        assert f"{facts.report.run}/previews/step-00000040.png" in read.text
    images = [value for name, value in read.attributes if name == "src"]
    assert len(images) == 20 and all(value and value.startswith("data:image/png;base64,") for value in images)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read.tags)
    names = [value for name, value in read.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert all(sentence in read.text for facts in found for sentence in facts.report.missing)


def test_strings_of_strangers_are_shown_as_text(runs: list[Path], tmp_path: Path) -> None:
    name = "_$x$ &<b>\x1b[31m"
    odd = runs[1].rename(tmp_path / name)
    change(odd, "data", path=HOSTILE, class_names=[HOSTILE, name, *"23456789"])
    change(odd, "settings", val=HOSTILE)
    read = Reader(render(*compared(runs[0], odd)))
    assert "script" not in read.tags and read.tags.count("img") == 20
    assert not any(attribute.startswith("on") for attribute, _ in read.attributes)
    assert read.text.count("_$x$ &<b>") > 8 and HOSTILE in read.text


@pytest.mark.parametrize("state", [just_begun, beyond_numbers], ids=lambda state: state.__name__)
def test_a_run_that_has_nothing_to_show_is_among_them(state: Callable[[Path], None], runs: list[Path]) -> None:
    state(runs[1])
    found = compared(*runs)
    assert len(Reader(render(*found)).tags) > 100
    json.dumps(report_of(found), allow_nan=False)
    state(runs[0])
    assert "None yet" in Reader(render(*compared(*runs))).text or state is beyond_numbers


def test_the_command_compares_runs_with_samples_of_each(elbo: Callable[..., Any], runs: list[Path]) -> None:
    folder = runs[0].parent
    for name, grey in (("a", 10), ("b", 200)):
        np.save(folder / f"{name}.npy", np.full((4, 8, 8, 1), grey, np.uint8))
    words = ("report", "one", "two", "--samples", "a.npy", "--samples", "b.npy")
    assert elbo(*words, "-o", "r.html", cwd=folder).returncode == 0
    text = Reader((folder / "r.html").read_text()).text
    assert text.index("a.npy") < text.index("b.npy") and "2 runs" in text
    facts = json.loads(elbo(*words, "--json", cwd=folder).stdout)
    assert [each["run"] for each in facts["runs"]] == ["one", "two"]
    assert [each["samples"]["file"] for each in facts["runs"]] == ["a.npy", "b.npy"]
    assert facts["differences"] == {"weighting": ["sigmoid:bias=2", "elbo"], "batch": [16, 8]}
    assert facts["runs"][0] == json.loads(elbo("report", "one", "--samples", "a.npy", "--json", cwd=folder).stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--samples", "a.npy"], "--samples: 1 of them for 2 runs; give one for each"),
        (["--scores", "a.json"], "--scores: of several runs, put each result into its run's folder"),
    ],
)
def test_what_belongs_to_no_run_is_refused(
    words: list[str], said: str, elbo: Callable[..., Any], runs: list[Path]
) -> None:
    result = elbo("report", "one", "two", *words, "-o", "r.html", cwd=runs[0].parent)
    assert result.returncode == 2 and said in result.stderr.decode()
    assert not (runs[0].parent / "r.html").exists()
