"""`elbo report` as typed: a page or facts of a run or several, with samples and scores, and mistakes."""

import json
import os
import pty
import shlex
import shutil

import numpy as np
import pytest
from harness import spawn_elbo
from run_pages import Reader, change

from elbocli.files.yaml_text import read_yaml


@pytest.fixture(scope="module")
def folder(elbo, trained, digits, tmp_path_factory):
    """A folder with runs, samples, scores and a bound."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("run", "two"):
        shutil.copytree(trained, folder / name)
    change(folder / "two", "settings", batch=8)
    assert elbo("sample", trained, "-n", 40, "--steps", 2, "-o", "s.h5", cwd=folder).returncode == 0
    np.save(folder / "grey.npy", np.full((4, 8, 8, 1), 200, np.uint8))
    options = ("--extractor", "elbo-tiny", "--metrics", "fid")
    for name, words in {
        "fid.json": ("eval", "s.h5", "--ref", digits, *options),
        "bound.json": ("bound", trained, "-n", 20),
        "theorem.json": ("bound", trained, "--check", "-n", 20, "--draws", 64),
    }.items():
        result = elbo(*words, cwd=folder)
        assert result.returncode == 0, result.stderr
        (folder / name).write_bytes(result.stdout)
    return folder


def test_the_page_goes_to_a_file_or_to_standard_output(elbo, folder, tmp_path):
    page = tmp_path / "a.html"
    assert elbo("report", "run", "-o", page, cwd=folder).returncode == 0
    result = elbo("report", "run", cwd=folder)
    assert (result.returncode, result.stderr) == (0, b"") and result.stdout == page.read_bytes()


def test_everything_that_was_given_is_on_the_page_and_in_the_facts(elbo, folder, tmp_path):
    names = {"scores": "fid.json", "bound": "bound.json", "theorem": "theorem.json"}
    words = ["--samples", "s.h5", "--json", "-o", tmp_path / "a.html"]
    for name in names.values():
        words += ["--scores", name]
    facts = json.loads(elbo("report", "run", *words, cwd=folder).stdout)
    text = Reader((tmp_path / "a.html").read_text()).text
    for kind, name in names.items():
        assert facts[kind] == [{"file": name, **json.loads((folder / name).read_text())}] and name in text
    assert facts["samples"] == {"file": "s.h5", "classes": [*"0123456789"]}
    commands = [each["command"] for each in facts["commands"]]
    for word in ("elbo sample", "elbo eval"):
        assert any(word in command for command in commands)
    again = next(command for command in commands if "--config" in command)
    line = shlex.split(again)[1:-1]
    assert elbo(*line, tmp_path / "again", "--steps", 5, cwd=folder).returncode == 0
    assert read_yaml(tmp_path / "again" / "config.yaml")["settings"] == {**facts["settings"], "steps": 5}


def test_the_command_compares_runs_with_samples_of_each(elbo, folder, tmp_path):
    words = ("report", "run", "two", "--samples", "s.h5", "--samples", "grey.npy")
    facts = json.loads(elbo(*words, "--json", "-o", tmp_path / "r.html", cwd=folder).stdout)
    text = Reader((tmp_path / "r.html").read_text()).text
    assert text.index("s.h5") < text.index("grey.npy") and "2 runs" in text
    assert [each["run"] for each in facts["runs"]] == ["run", "two"] and facts["differences"] == {"batch": [16, 8]}
    assert facts["runs"][0] == json.loads(elbo("report", "run", *words[3:5], "--json", cwd=folder).stdout)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("nowhere", 1, "nowhere"),
        ("run --scores run/status.json", 1, "status.json"),
        ("run two --samples s.h5", 2, "--samples"),
        ("run two --scores fid.json", 2, "--scores"),
    ],
)
def test_mistakes_are_told(words, code, said, elbo, folder):
    result = elbo("report", *words.split(), "-o", "none.html", cwd=folder)
    assert result.returncode == code and said in result.stderr.decode() and not (folder / "none.html").exists()


def test_a_page_never_goes_onto_a_terminal(folder):
    parent, child = pty.openpty()
    process = spawn_elbo("report", folder / "run", stdout=child)
    os.close(child)
    told = process.communicate()[1]
    os.close(parent)
    assert process.returncode == 2 and b"-o FILE" in told
