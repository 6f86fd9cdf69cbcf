"""Options and commands as other tools call them: the message names elbo's own, and with that the line is right."""

import re
import shlex
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest
from short_ids import short

from elbocli.cli.grouped_help import Command
from elbocli.cli.other_words import COMMANDS, OPTIONS
from elbocli.main import COMMANDS as OURS
from elbocli.main import elbo as group

Elbo = Callable[..., Any]


def command(name: str) -> click.Command:
    """A command by its name."""
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


def own(name: str) -> set[str]:
    """Options and arguments of a command, as messages name them."""
    params = command(name).params
    metavars = {each.human_readable_name.strip("[].") for each in params if isinstance(each, click.Argument)}
    return {word for each in params for word in each.opts} | metavars


LEAVES = [name for name in OURS if isinstance(command(name), Command)]
EXPECTED = [
    (name, word, ours)
    for word, several in OPTIONS.items()
    for name in LEAVES
    if word not in own(name)
    for ours in [next((each for each in several if each.partition(",")[0] in own(name)), None)]
    if ours is not None
]


def test_every_word_of_the_table_is_right_for_some_command() -> None:
    used = {(word, ours) for _, word, ours in EXPECTED}
    assert used == {(word, ours) for word, several in OPTIONS.items() for ours in several}


@pytest.mark.parametrize("name", LEAVES)
def test_another_tools_option_is_answered_with_elbos(name: str) -> None:
    expected = [(word, ours) for each, word, ours in EXPECTED if each == name]
    for word, ours in expected:
        for typed in (word, f"{word}=3"):
            with pytest.raises(click.UsageError) as caught:
                command(name).make_context(name, [typed])
            assert f"No such option '{word}'; here it is {ours}" in caught.value.format_message()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train DATA --epochs 1 -o r --preset P", "train DATA --steps 1 -o r --preset P"),
        ("train DATA --batch_size 4 --steps 1 -o r --preset P", "train DATA --batch 4 --steps 1 -o r --preset P"),
        ("train --dataset DATA --steps 1 -o r --preset P", "train DATA --steps 1 -o r --preset P"),
        (
            "train DATA --snr-gamma 5 --steps 1 -o r --preset P",
            "train DATA --weighting min-snr:5 --steps 1 -o r --preset P",
        ),
        ("sample --model RUN -o x.npy --steps 2 -n 1", "sample RUN -o x.npy --steps 2 -n 1"),
        ("sample RUN -o x.npy --num-samples 1 --steps 2", "sample RUN -o x.npy --n 1 --steps 2"),
        ("sample RUN -o x.npy --cfg 2 -n 1 --steps 2", "sample RUN -o x.npy --guidance 2 -n 1 --steps 2"),
        ("prep SRC x.h5 --resolution 8", "prep SRC x.h5 --size 8"),
    ],
    ids=lambda line: short(line.partition(" -o")[0]),
)
def test_the_line_with_the_named_option_runs(
    wrong: str, right: str, elbo: Elbo, digits: Path, digits_folder: Path, trained: Path, preset: Path, tmp_path: Path
) -> None:
    places = {"DATA": digits, "SRC": digits_folder, "RUN": trained, "P": preset}
    lines = [[str(places.get(word, word)) for word in line.split()] for line in (wrong, right)]
    done = elbo(*lines[0], cwd=tmp_path)
    assert done.returncode == 2
    named = re.search(r"here it is ([^\s,]+)", done.stderr.decode())
    assert named is not None and (named[1] in right or named[1] in ("DATA.h5", "RUN"))
    done = elbo(*lines[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", COMMANDS)
def test_another_tools_command_is_answered_with_elbos_which_is_there(word: str, elbo: Elbo) -> None:
    if word in OURS:
        pytest.skip("elbo has it")
    done = elbo(word, "x")
    said = re.search(r"No such command '(.*)'; '(elbo .*)' does that", done.stderr.decode())
    assert done.returncode == 2 and said is not None and said[1] == word
    named = shlex.split(said[2])[1:]
    names = list(takewhile(lambda each: not each.startswith("-"), named))
    helped = elbo(*names, "--help") if names else elbo(*named)
    assert helped.returncode == 0, helped.stderr


def test_a_misspelt_command_is_answered_with_the_nearest_and_an_early_option_with_its_place(elbo: Elbo) -> None:
    assert b"No such command 'trian'; did you mean train?" in elbo("trian").stderr
    assert b"No such command 'plto'; did you mean plot?" in elbo("weights", "plto").stderr
    assert b"known: adapt, bound, " in elbo("xyzzy").stderr
    early = elbo("-q", "weights", "list")
    assert early.returncode == 2
    assert b"No such option '-q' before a command; options stand after it: elbo COMMAND -q" in early.stderr
    assert elbo("weights", "list", "-q").returncode == 0


def test_a_setting_of_a_file_is_known_by_other_words_too(elbo: Elbo, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("learning_rate: 1e-3\n")
    done = elbo("train", digits, "--config", "c.yaml", cwd=tmp_path)
    assert b"c.yaml: unknown setting 'learning_rate'; here it is lr" in done.stderr
