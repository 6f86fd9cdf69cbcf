"""The help of every command: headings, two screens for training, and one declaration behind option, check and page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from elbocli.cli.commands import Command
from elbocli.main import COMMANDS
from elbocli.main import elbo as group
from elbocli.run import train_settings
from elbocli.run.train_settings import SETTINGS
from elbocli.train.command import train

SCREEN = 50


def help_of(name: str, width: int = 80) -> str:
    """What --help prints on a terminal of so many columns."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    with click.Context(command, info_name=f"elbo {name}", terminal_width=width - 2, max_content_width=100) as context:
        return command.get_help(context)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_the_first_sentence_of_its_help(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None and command.help is not None
    assert " ".join(command.help.split("\n\n")[0].split()).partition(":\n")[0] == COMMANDS[name]


def test_the_group_lists_every_command_without_importing_one() -> None:
    code = (
        "import sys; from elbocli.main import run; run(['--help']); "
        "sys.exit(any(m.endswith('.command') for m in sys.modules) * 77)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^  ([a-z]+) ", result.stdout.partition("Commands:\n")[2], re.M) == [*COMMANDS]


def test_one_commands_help_imports_no_other_command() -> None:
    code = "import sys; from elbocli.main import run; run(['info', '--help']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in result.stdout.split() if name.endswith(".command")} == {"elbocli.info.command"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_under_one_heading(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    if not isinstance(command, Command):
        return
    context = click.Context(command, help_option_names=["-h", "--help"])
    shown = [option for options in command.sections(context).values() for option in options]
    assert sorted(option.opts for option in shown) == sorted(
        option.opts for option in command.get_params(context) if isinstance(option, click.Option)
    )
    text = help_of(name)
    assert all(f"{heading}:" in text for heading in command.groups)


def test_the_help_of_training_fits_two_screens_and_its_headings_answer_what_one_asks() -> None:
    text = help_of("train")
    assert len(text.splitlines()) <= 2 * SCREEN and max(map(len, text.splitlines())) <= 80
    sections = {block.partition(":\n")[0]: block for block in text.split("\n\n")}
    for heading, words in {
        "Objective, what is learned": (
            "--weighting",
            "--bias",
            "--shift",
            "--[no-]monotone",
            "--prediction",
            "--logsnr-min",
        ),
        "Noise levels drawn, which change the variance of the loss alone": ("--schedule",),
        train_settings.SPEED: ("--precision", "--[no-]compile", "--parallel", "--micro-batch"),
        train_settings.KEPT: ("--ema", "--save-every", "--keep", "--snapshot-every"),
    }.items():
        assert all(word in sections[heading] for word in words), heading


def test_every_setting_is_an_option_of_its_name_and_every_option_a_setting() -> None:
    options = {option.name for option in train.params if isinstance(option, click.Option)}
    assert len(options - {"quiet", "verbose"}) <= 48
    assert options - {
        "out",
        "config",
        "init",
        "plugin",
        "log_to",
        "on_checkpoint",
        "overwrite",
        "dry_run",
        "words",
        "quiet",
        "verbose",
    } == {name for name, each in SETTINGS.items() if each.says("flags", name)}


def test_a_parameter_of_a_weighting_shadows_no_option(digits: Path, tmp_path: Path) -> None:
    """Such as `lr`, of one that is declared before the command is."""
    code = f"""
import sys
from elbocli.core.weighting_curves import weighting

@weighting("mine", formula="lr", monotone=True, source="this test", lr=1.0)
def mine(logsnr, lr):
    return logsnr * 0 + lr

from elbocli.main import run
sys.exit(run(["train", {str(digits)!r}, "--dry-run", "--weighting", "mine:lr=3", "--lr", "0.25"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^(lr|weighting): (.*)$", result.stdout, re.M) == [("weighting", "mine:lr=3"), ("lr", "0.25")]
