"""The example scripts: shellcheck finds nothing, dry mode plans, and what is launched is understood by who is launched."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from elbocli.train.command import train

TRAIN = Path(__file__).parent.parent / "examples" / "train"
SCRIPTS = sorted(TRAIN.iterdir())
DEVICES = {"one-gpu.sh": 1, "eight-gpus.sh": 8, "slurm-two-nodes.sbatch": 16}
HERE = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
VARIABLES = ("DATA", "RUN", "PRESET", "GPUS", "REF", "SCORE_DEVICE", "DRY", "TIME_LIMIT")


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """start(script, *options, **variables): run it in an empty folder; what is in ./bin is found first."""
    (tmp_path / "bin").mkdir()
    fake(tmp_path, "elbo", f'exec {sys.executable} -m elbocli "$@"')

    def run(script: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        own = {k: v for k, v in os.environ.items() if k not in VARIABLES and not k.startswith(("ELBO_", "SLURM_"))}
        environment = {**own, "ELBO_DEVICE": "cpu", "PATH": f"{tmp_path / 'bin'}:{HERE}", **variables}
        line = [script.read_text().splitlines()[0].removeprefix("#!").split()[-1].rpartition("/")[2], str(script)]
        return subprocess.run(
            [*line, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def fake(tmp_path: Path, name: str, script: str) -> None:
    """A command of that name."""
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def understood(words: list[str]) -> dict[str, Any]:
    """Options of `elbo train` as it reads them."""
    with train.make_context("train", list(words)) as context:
        given = context.params
        return {
            k: v for k, v in given.items() if context.get_parameter_source(k) is click.core.ParameterSource.COMMANDLINE
        }


def test_there_is_one_for_every_size() -> None:
    assert {path.name for path in SCRIPTS} == set(DEVICES)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    result = subprocess.run(
        ["shellcheck", script], env={**os.environ, "PATH": HERE}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_dry_mode_plans_for_as_many_devices_and_leaves_nothing(script: Path, start: Any, tmp_path: Path) -> None:
    """With a small preset, for the time it takes."""
    result = start(script, "--steps", "77", DRY="1", PRESET="digits")
    assert result.returncode == 0, result.stderr
    plan = yaml.safe_load(result.stdout)
    assert plan["devices"] == DEVICES[script.name] and plan["steps"] == 77
    assert plan["memory_MB"]["total"] > 0 and plan["preset"] == "digits"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_dry_mode_plans_the_papers_networks(script: Path, start: Any) -> None:
    result = start(script, DRY="1")
    assert result.returncode == 0, result.stderr
    plan = yaml.safe_load(result.stdout)
    assert plan["network"]["parameters"] == (295_899_267 if script.name == "one-gpu.sh" else 2_008_748_336)


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "one-gpu.sh"], ids=lambda path: path.name)
def test_what_is_printed_is_what_is_launched_and_torchrun_and_elbo_understand_it(
    script: Path, start: Any, tmp_path: Path
) -> None:
    from torch.distributed.run import get_args_parser

    for name in ("torchrun", "srun"):
        fake(tmp_path, name, f'for word in {name} "$@"; do printf "%s\\n" "$word"; done > {tmp_path}/launched')
    fake(tmp_path, "elbo", f"touch {tmp_path}/started")
    printed = shlex.split(start(script, "--lr", "3e-4", DRY="1").stderr)
    assert start(script, "--lr", "3e-4").returncode == 0
    launched = (tmp_path / "launched").read_text().splitlines()
    assert launched == printed
    words = launched[launched.index("torchrun") + 1 :]
    arguments = get_args_parser().parse_args(words)
    assert arguments.no_python and arguments.training_script == "elbo" and "SIGUSR1" in arguments.signals_to_handle
    assert (
        int(arguments.nproc_per_node) == 8 and int(str(arguments.nnodes).partition(":")[0]) * 8 == DEVICES[script.name]
    )
    options = understood(arguments.training_script_args[1:])
    assert arguments.training_script_args[0] == "train"
    assert options["parallel"] == "fsdp" and options["lr"] == 3e-4 and options["out"] == Path("runs/imagenet512")


def test_one_gpu_trains_with_options_that_elbo_understands(start: Any, tmp_path: Path) -> None:
    fake(tmp_path, "elbo", f'for word in "$@"; do printf "%s\\0" "$word"; done > {tmp_path}/words; exit 143')
    result = start(TRAIN / "one-gpu.sh", "--seed", "4", REF="my ref.npz", RUN="there/run")
    assert result.returncode == 143 and (tmp_path / "there").is_dir()
    verb, *words = (tmp_path / "words").read_text().removesuffix("\0").split("\0")
    options = understood(words)
    assert verb == "train" and options["seed"] == 4 and options["out"] == Path("there/run")
    assert '"$ELBO_CHECKPOINT"' in options["on_checkpoint"] and '--ref "$REF"' in options["on_checkpoint"]


@pytest.mark.parametrize(("given", "device"), [({}, "cpu"), ({"SCORE_DEVICE": "cuda:1"}, "cuda:1")])
def test_checkpoints_are_scored_beside_the_card_that_training_fills(
    given: dict[str, str], device: str, start: Any, tmp_path: Path
) -> None:
    """By running the command as training would: the lines of both commands in it, each with its device."""
    hook = f'while [ "$1" != --on-checkpoint ]; do shift; done; ELBO_CHECKPOINT=c ELBO_RUN={tmp_path} ELBO_STEP=7 sh -ec "$2"'
    tell = f'printf "%s " "$@" > {tmp_path}/$1'
    fake(tmp_path, "elbo", f'if [ "$1" = train ]; then {hook}; else {tell}; fi')
    assert start(TRAIN / "one-gpu.sh", REF="my ref.npz", **given).returncode == 0
    for command in ("sample", "eval"):
        assert f" --device {device} " in (tmp_path / command).read_text()
    assert (tmp_path / "fid-7.json").exists() and "--ref my ref.npz " in (tmp_path / "eval").read_text()


def status(state: str, message: str) -> str:
    return f'mkdir -p runs/r; printf \'{{\\n "state": "{state}",\\n "message": "{message}",\\n "time": 1\\n}}\\n\' > runs/r/status.json'


@pytest.mark.parametrize(
    ("does", "requeued", "code"),
    [
        (f"{status('interrupted', 'SIGUSR1: saved')}; exit 1", True, 1),
        (status("stopped", "ended by its time limit; saved step 5 of 9"), True, 0),
        (status("done", ""), False, 0),
        (f"{status('failed', 'loss nan')}; exit 1", False, 1),
        ("exit 1", False, 1),
    ],
)
def test_a_job_queues_itself_again_only_when_there_is_something_left_to_do(
    does: str, requeued: bool, code: int, start: Any, tmp_path: Path
) -> None:
    before = tmp_path / "runs" / "r" / "status.json"  # of the job before
    before.parent.mkdir(parents=True)
    before.write_text('{\n "state": "interrupted",\n "time": 0\n}\n')
    fake(tmp_path, "srun", does)
    fake(tmp_path, "scontrol", f'[ "$1" = requeue ] && echo "$2" > {tmp_path}/requeued; echo node7; echo node8')
    result = start(TRAIN / "slurm-two-nodes.sbatch", RUN="runs/r", SLURM_JOB_ID="42", SLURM_JOB_NODELIST="node[7-8]")
    assert result.returncode == code, result.stderr
    assert ((tmp_path / "requeued").read_text() == "42\n") if requeued else not (tmp_path / "requeued").exists()
    before.write_text('{\n "state": "interrupted",\n "time": 0\n}\n')
    fake(tmp_path, "torchrun", does)
    eight = start(TRAIN / "eight-gpus.sh", RUN="runs/r")
    assert eight.returncode == (75 if "interrupted" in does else code)


def test_nodes_meet_at_the_first(start: Any, tmp_path: Path) -> None:
    fake(tmp_path, "scontrol", "echo node7; echo node8")
    fake(tmp_path, "elbo", "true")
    result = start(
        TRAIN / "slurm-two-nodes.sbatch", DRY="1", SLURM_JOB_ID="42", SLURM_JOB_NODELIST="node[7-8]", SLURM_NNODES="2"
    )
    words = shlex.split(result.stderr)
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:29500" and words[words.index("--rdzv-id") + 1] == "42"


@pytest.mark.slow
def test_eight_gpus_for_real_with_two_processes_on_a_cpu(
    start: Any, digits: Path, preset: Path, tmp_path: Path
) -> None:
    options = ["--device", "cpu", "--steps", "4", "--no-compile", "--precision", "fp32", "--val-split", "20"]
    variables = {"DATA": str(digits), "PRESET": str(preset), "RUN": "runs/r", "GPUS": "2"}
    result = start(TRAIN / "eight-gpus.sh", *options, **variables)
    assert result.returncode == 0, result.stderr
    assert '"state": "done"' in (tmp_path / "runs" / "r" / "status.json").read_text()
