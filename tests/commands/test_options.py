"""Options, their help, versions, and what shells complete, all of which start fast: without heavy imports."""

import json
import os
import re
from pathlib import Path
from pkgutil import resolve_name

import click
import pytest
from harness import run_code, spawn_elbo
from hypothesis import given
from hypothesis import strategies as st

from elbocli.commands import shared as cli
from elbocli.commands.shared.commands import Option
from elbocli.commands.train import train
from elbocli.commands.weights import REGISTRIES, list_
from elbocli.core.prediction import PREDICTIONS
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import UsageError
from elbocli.main import COMMANDS
from elbocli.main import elbo as group
from elbocli.report.figure import brief
from elbocli.runs import train_settings
from elbocli.runs.presets import NAMES, load_preset
from elbocli.runs.train_settings import SETTINGS, TrainSettings, seconds
from elbocli.sampling.samplers import SAMPLERS
from elbocli.version import __version__

SETUP = Path(__file__).parents[2] / "setup.cfg"
LIGHT = """
import json, os, sys
from elbocli.main import extend_segments, run
extend_segments()
assert os.environ["PYTORCH_ALLOC_CONF"] == os.environ["PYTORCH_CUDA_ALLOC_CONF"] == sys.argv[2]
for line in json.loads(sys.argv[1]):
    before = {name for name in sys.modules if name.endswith(".command")}
    assert run([*line]) == 0, line
    heavy = {"torch", "numpy", "h5py", "matplotlib", "PIL", "yaml", "jinja2"} & set(sys.modules)
    assert not heavy, (line, heavy)
    new = {name for name in sys.modules if name.endswith(".command")} - before
    assert len(new) <= (line[0] != "--help"), (line, new)
"""
OFFERED = """
import json, os, sys
from elbocli import main
for line in json.loads(sys.argv[1]):
    os.environ |= {"_ELBO_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    assert main.run([]) == 0
    print("==")
assert not {"torch", "numpy", "h5py", "matplotlib", "PIL", "yaml", "jinja2"} & set(sys.modules)
"""
COMPLETIONS = {
    "elbo ": [*COMMANDS],
    "elbo re": ["report"],
    "elbo weights check ": WEIGHTINGS,
    "elbo weights plot edm ed": ["edm", "edm-monotonic"],
    "elbo train --weighting ": [*WEIGHTINGS, "uncertainty"],
    "elbo train --schedule ": [*SCHEDULES, "adaptive"],
    "elbo train --prediction ": PREDICTIONS,
    "elbo train --preset digits": ["digits", "digits-dit", "digits-uvit"],
    "elbo train --weighting x/": ["file,x/"],
    "elbo sample run-a --sampler ": SAMPLERS,
    "elbo bound run-a --weighting sig": ["sigmoid"],
    "elbo report run-a --ca": ["--card"],
    "elbo prep ": ["file,"],
}


def commands(command=group, *path):
    """Yield every command with the words before it."""
    yield [*path], command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from commands(command.get_command(click.Context(command), name), *path, name)


# Starts


@pytest.mark.parametrize("allocator", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}])
def test_help_imports_nothing_heavy_and_cudas_allocator_extends_segments_unless_told_how(allocator):
    """Torch reads these variables when it is imported."""
    lines = [["--help"], ["--version"], ["list", "extractors"], ["list", "factors"]]
    lines += [[*path, "-h"] for path, _ in commands() if not allocator]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTORCH")}
    wanted = [*allocator.values(), "expandable_segments:True"][0]
    result = run_code(LIGHT, json.dumps(lines), wanted, env={**variables, **allocator})
    assert result.returncode == 0, result.stderr
    listed = result.stdout.decode().partition("Data:\n")[2].partition("  elbo ")[0]
    assert re.findall(r"^  ([a-z0-9]+) ", listed, re.M) == [*COMMANDS]


# Names


def test_other_names_lead_to_options_and_words_for_zero_to_zero():
    options = {name for _, command in commands() for param in command.params for name in param.opts}
    for line in (Path(cli.__file__).parent / "other_names.txt").read_text().splitlines():
        name, *rest = line.split()
        named = {word.strip("(;,)") for word in rest if word.startswith("--")}
        assert named <= options and name not in options and (name[-1] == ":" or named), line
    for name, setting in SETTINGS.items():
        word = setting.zero
        assert word is None or TrainSettings.convert({name: word}) == {name: 0} == TrainSettings.convert({name: 0})


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("prep images x.h5 --classes names.txt", "--class-names"),
        ("import w.pt run --classes 3", "--num-classes"),
        ("train x.h5 --weighting_scheme sigma_sqrt", "sigma-sqrt"),
        ("train x.h5 --mixed_precision bf16", "--precision"),
    ],
)
def test_an_option_of_other_programs_is_refused_with_elbos_name(line, word, elbo):
    result = elbo(*line.split())
    assert result.returncode == 2 and word in result.stderr.decode()


# Help


def test_every_command_has_help_for_itself_and_each_option():
    for path, command in commands():
        first = command.help.split("\n\n")[0].split()
        assert first[-1].endswith((".", ":"))
        if len(path) == 1:
            assert " ".join(first).partition(":\n")[0] == COMMANDS[path[0]]
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help or hasattr(option.type, "choices") or "logsnr" in option.opts[0], (path, option.name)
    assert set(REGISTRIES) <= set(re.findall(r"[\w-]+", list_.help))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_each_kind_of_name_is_listed_with_its_parameters(kind, elbo):
    listed = elbo("list", kind).stdout.decode()
    for declared in resolve_name(REGISTRIES[kind]).values():
        row = next(line for line in listed.splitlines() if line.startswith(f"{declared.name} "))
        assert all(f"{key}=" in row for key in declared.params)


def test_each_help_fits_two_screens_and_the_options_of_training_are_its_settings():
    for path, command in commands():
        with click.Context(command, info_name=" ".join(["elbo", *path]), terminal_width=78) as context:
            lines = command.get_help(context).splitlines()
        assert len(lines) <= 90 and max(map(len, lines)) <= 80, path
    options = {option.name for option in train.params if isinstance(option, click.Option)}
    others = "out config init plugin log_to eval_extractor eval_weights overwrite dry_run words quiet verbose"
    assert options - {*others.split()} == {name for name, each in SETTINGS.items() if each.flags != ""}
    assert {train_settings.SPEED, train_settings.KEPT} <= {option.group for option in train.params if isinstance(option, Option)}


SHADOWING = """
from elbocli.core.weighting_curves import weighting

@weighting("mine", formula="lr", monotone=True, source="this test")
def mine(logsnr, lr=1.0):
    return logsnr * 0 + lr

import sys
from elbocli.main import run
sys.exit(run(["train", sys.argv[1], "--dry-run", "--weighting", "mine:lr=3", "--lr", "0.25"]))
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_changes_no_default_that_help_shows(name):
    assert [key for key in load_preset(name).train if SETTINGS[key].shown] == []


@pytest.mark.long
def test_a_parameter_of_a_weighting_shadows_no_option(digits, tmp_path):
    """The plug-in declares the weighting before elbo imports the command."""
    result = run_code(SHADOWING, digits, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^(lr|weighting): (.*)$", result.stdout, re.M) == [("weighting", "mine:lr=3"), ("lr", "0.25")]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("sigmoid:bias=2", "sigmoid"),
        ("sigmoid:bias=0", "sigmoid:bias=0"),
        ("edm:mean=-1.2,std=1.2,sigma_data=0.5,monotone", "edm:monotone"),
        ("eps-mse:min-snr:gamma=5@linear-beta:beta_min=0.1,beta_max=20", "eps-mse:min-snr@linear-beta"),
        ("v-mse@runs/a/scheduler_config.json", "v-mse@runs/a/scheduler_config.json"),
        *[(parse_weighting(name).spec, name) for name in WEIGHTINGS],
    ],
)
def test_a_legend_says_what_is_not_default(spec, wanted):
    assert brief(spec) == wanted


# Durations


@given(st.integers(0, 900), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_units_and_colons_say_the_same(days, hours, minutes, rest):
    wanted = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    for text in (
        f"{days}d{hours}h{minutes}m{rest}s",
        f"{days}D {hours}H {minutes}min {rest}s",
        f"{days}-{hours}:{minutes:02}:{rest:02}",
        f"{24 * days + hours}:{minutes:02}:{rest:02}",
        f"{wanted / 3600!r}h",
        wanted,
        float(wanted),
    ):
        assert seconds(text) == pytest.approx(wanted, rel=1e-12)
    assert seconds(f"{60 * hours + minutes}:{rest:02}") == 3600 * hours + 60 * minutes + rest


@pytest.mark.parametrize("text", ["90", "1.5", "", "soon", "50m3h", "1:2", "1.2.3h", "-5m", "1001d", "-1.0", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError):
        TrainSettings.convert({"time_limit": text})


# Versions


def test_the_version_is_printed_and_no_variable_asks_for_it(elbo):
    assert elbo("--version").stdout == f"elbo {__version__}\n".encode()
    assert elbo("list", "factors", env={"ELBO_VERSION": "1"}).stdout == elbo("list", "factors").stdout


# Completion


def test_names_and_files_are_offered_without_heavy_imports():
    result = run_code(OFFERED, json.dumps([*COMPLETIONS]), text=True)
    assert result.returncode == 0, result.stderr
    answers = [block.split() for block in result.stdout.split("==\n")][:-1]
    found = {line: [word.removeprefix("plain,") for word in words] for line, words in zip(COMPLETIONS, answers)}
    assert found == {line: [*wanted] for line, wanted in COMPLETIONS.items()}


def test_the_script_is_for_that_shell(elbo):
    assert b"_ELBO_COMPLETE=bash_complete" in elbo(env={"_ELBO_COMPLETE": "bash_source"}).stdout


def test_modules_of_the_working_directory_are_not_run(tmp_path):
    (tmp_path / "click.py").write_text("raise SystemExit(7)")
    with spawn_elbo("--version", cwd=tmp_path) as process:
        assert process.wait() == 0
