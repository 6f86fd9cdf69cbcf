"""The example scripts: what they launch is understood by elbo and torchrun, what they tabulate is what was measured, and they run."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import yaml
from calls import Classifier, load
from harness import BIN, environment, heed_signals
from PIL import Image
from sklearn.datasets import load_digits
from torch.distributed.run import get_args_parser

from elbocli.commands.train import train
from elbocli.files.yaml_text import read_yaml

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TRAIN = EXAMPLES / "train"
SWEEP = EXAMPLES / "sweep"
DEVICES = {"one-gpu.sh": 1, "eight-gpus.sh": 8, "slurm-two-nodes.sbatch": 16}
VARIABLES = {"DATA", "RUN", "PRESET", "GPUS", "REF", "SCORE_DEVICE", "DRY", "TIME_LIMIT"}


def test_shellcheck_finds_nothing():
    scripts = [path for suffix in ("sh", "sbatch") for path in EXAMPLES.rglob(f"*.{suffix}")]
    variables = environment(PATH=BIN)
    done = subprocess.run(["shellcheck", *scripts], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(scripts) > 6, done.stdout


# Training on one card, eight, and two nodes


@pytest.fixture
def start(tmp_path):
    """start(script, *options, **variables): run it in an empty folder; programs in ./bin are found first."""

    def run(name, *options, **variables):
        own = {key: value for key, value in environment().items() if key not in VARIABLES and key[:5] != "SLURM"}
        script = TRAIN / name
        shell = script.read_text().splitlines()[0].rpartition("/")[2].split()[-1]
        path = f"{tmp_path / 'bin'}{os.pathsep}{BIN}"
        line = [shell, str(script), *options]
        how = {"capture_output": True, "text": True, "check": False, "preexec_fn": heed_signals}
        return subprocess.run(line, cwd=tmp_path, env={**own, "PATH": path, **variables}, **how)

    return run


def fake(folder, name, script):
    """A command of that name, which the scripts start."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def understood(words):
    """Options of `elbo train` as it reads them."""
    with train.make_context("train", [*words]) as context:
        given = click.core.ParameterSource.COMMANDLINE
        return {name: value for name, value in context.params.items() if context.get_parameter_source(name) is given}


@pytest.mark.parametrize("name", DEVICES)
def test_dry_mode_plans_for_as_many_devices_and_leaves_nothing(name, start, elbo, tmp_path):
    """This process runs the command that the script starts."""
    fake_torchrun(tmp_path, "", "--max-restarts")
    fake(tmp_path, "elbo", 'echo "$TORCHELASTIC_RUN_ID $WORLD_SIZE"; printf "%s\\n" "$@"')
    group, *words = start(name, "--steps", "77", DRY="1", PRESET="digits").stdout.splitlines()
    result = elbo(*words, cwd=tmp_path, env=dict(zip(("TORCHELASTIC_RUN_ID", "WORLD_SIZE"), group.split())))
    assert result.returncode == 0, result.stderr
    plan = yaml.safe_load(result.stdout)
    assert (plan["devices"], plan["steps"], plan["preset"]) == (DEVICES[name], 77, "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def fake_torchrun(folder, script, *options):
    """A torchrun whose help names these options; without them, its help is that of the torchrun of this torch."""
    shown = f"echo '{' '.join(options)}'" if options else f"exec '{sys.executable}' -m torch.distributed.run --help"
    fake(folder, "torchrun", f'if [ "$1" = --help ]; then {shown}; exit; fi; {script}')


LAUNCHES = 'for word in {} "$@"; do printf "%s\\n" "$word"; done > launched'


@pytest.mark.parametrize("name", ["eight-gpus.sh", "slurm-two-nodes.sbatch"])
@pytest.mark.parametrize("options", [["--max-restarts"], ["--signals-to-handle"], ["--signals-to-handle", "--shutdown-timeout"]])
def test_an_older_torchrun_gets_no_option_that_it_lacks(name, options, start, tmp_path):
    """It has --signals-to-handle since torch 2.10, and --shutdown-timeout since 2.12."""
    fake_torchrun(tmp_path, LAUNCHES.format("torchrun"), *options)
    fake(tmp_path, "srun", LAUNCHES.format("srun"))
    fake(tmp_path, "elbo", "true")
    assert start(name).returncode == 0
    newer = {"--signals-to-handle", "--shutdown-timeout"}
    assert newer & {*(tmp_path / "launched").read_text().split()} == newer & {*options}


@pytest.mark.parametrize("name", ["eight-gpus.sh", "slurm-two-nodes.sbatch"])
def test_what_is_printed_is_launched_and_torchrun_and_elbo_understand_it(name, start, tmp_path):
    fake_torchrun(tmp_path, LAUNCHES.format("torchrun"))
    fake(tmp_path, "srun", LAUNCHES.format("srun"))
    fake(tmp_path, "scontrol", "echo node7; echo node8")
    fake(tmp_path, "elbo", "true")
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "12"}
    slurm = slurm if "slurm" in name else {}
    printed = shlex.split(start(name, "--lr", "3e-4", DRY="1", **slurm).stderr)
    assert start(name, "--lr", "3e-4", **slurm).returncode == 0
    launched = (tmp_path / "launched").read_text().splitlines()
    assert launched == printed
    arguments = get_args_parser().parse_args(launched[launched.index("torchrun") + 1 :])
    assert arguments.no_python and "SIGUSR1" in getattr(arguments, "signals_to_handle", "SIGUSR1")
    assert ("--cpus-per-task=12" in launched[: launched.index("torchrun")]) == bool(slurm)
    nodes = int(arguments.nnodes.partition(":")[0])
    assert int(arguments.nproc_per_node) * nodes == DEVICES[name]
    if slurm:
        assert (arguments.rdzv_endpoint, arguments.rdzv_id) == ("node7:29500", "42")
    assert (arguments.training_script, arguments.training_script_args[0]) == ("elbo", "train")
    options = understood(arguments.training_script_args[1:])
    assert (options["parallel"], options["lr"], options["out"]) == ("fsdp", 3e-4, Path("runs/imagenet512"))


def test_one_gpu_trains_and_scores_samples_against_a_reference(start, tmp_path):
    fake(tmp_path, "elbo", 'printf "%s\\n" "$@" > words; exit 143')
    assert start("one-gpu.sh", "--seed", "4", REF="my ref.npz", RUN="there/run").returncode == 143
    verb, *line = (tmp_path / "words").read_text().splitlines()
    assert (verb, line[line.index("--seed") + 1], line[:3]) == ("train", "4", ["imagenet64.h5", "-o", "there/run"])
    assert understood(line)["eval_ref"] == "my ref.npz"


def status(state, message):
    text = json.dumps({"state": state, "message": message, "time": 1}, indent=1)
    return f"mkdir -p runs/r; echo '{text}' > runs/r/status.json"


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
def test_a_job_queues_itself_again_only_when_something_is_left_to_do(does, requeued, code, start, tmp_path):
    fake(tmp_path, "srun", does)
    fake_torchrun(tmp_path, does, "--max-restarts")
    fake(tmp_path, "scontrol", '[ "$1" = requeue ] && echo "$2" > requeued; echo node7; echo node8')
    earlier = tmp_path / "runs/r/status.json"  # of the job before
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{\n "state": "interrupted"\n}\n')
    result = start("slurm-two-nodes.sbatch", RUN="runs/r", SLURM_JOB_ID="42", SLURM_JOB_NODELIST="node[7-8]")
    assert result.returncode == code, result.stderr
    assert (tmp_path / "requeued").exists() == requeued
    earlier.write_text('{\n "state": "interrupted"\n}\n')
    assert start("eight-gpus.sh", RUN="runs/r").returncode == (75 if "interrupted" in does else code)


# Trainings compared


@pytest.mark.long
def test_make_trains_each_setting_with_each_seed_and_goes_on(digits, tmp_path):
    line: list[Any] = [
        "make",
        "-f",
        EXAMPLES / "compare/Makefile",
        f"DATA={digits}",
        "SAMPLE=-n 20 --steps 2",
        "SETTINGS=low high",
    ]
    line += ["TRAIN=--preset digits --steps 2 --preview-every none", "high=--lr 1e-2", "low=--lr 1e-3"]
    for seeds in ("0", "0 1"):
        done = subprocess.run(
            [*line, f"SEEDS={seeds}"], cwd=tmp_path, env=environment(PATH=BIN), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "compare.json").read_text())
        count = len(seeds.split())
        assert found["first_trainings"] == found["others"][0]["trainings"] == count
        assert done.stdout.count("elbo train") == 2
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 1 + len(found["others"][0]["scores"])


# The ablation and the sweep


@pytest.fixture
def prepared(digits, tmp_path):
    """A folder with the datasets and the classifier that both examples look for."""
    for part in ("train", "test"):
        (tmp_path / f"{part}.h5").symlink_to(digits)
    images = (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),)
    exported = torch.export.export(Classifier(), images, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},))
    torch.export.save(exported, tmp_path / "classifier.pt2")
    return tmp_path


@pytest.mark.slow
def test_cells_of_the_ablation_are_measured_once_by_elbos_own_commands(prepared, monkeypatch):
    ablation = load(EXAMPLES / "ablation/ablation.py")
    monkeypatch.setattr(ablation, "SAMPLERS", {"ddpm": 2, "heun": 2})
    monkeypatch.setattr(ablation, "SAMPLES", 40)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    todo = [ablation.Cell("v", "own", "cosine", 0), ablation.Cell("v", "nosuch", "cosine", 0)]
    ablation.work(prepared, todo, 2, 2)
    good, bad = (json.loads((prepared / "results" / f"{cell.name}.json").read_text()) for cell in todo)
    assert "nosuch" in bad["failed"] and "ddpm" not in bad
    assert good["ddpm"] != good["heun"] and min(good[name]["frechet"] for name in ("ddpm", "heun")) > 0
    config = (prepared / "runs" / todo[0].name / "config.yaml").read_text()
    assert "weighting: eps-mse@cosine\n" in config and "steps: 2\n" in config
    monkeypatch.setattr(ablation, "elbo", None)
    ablation.work(prepared, todo, 2, 2)  # calls nothing


@pytest.mark.slow
def test_one_training_of_the_sweep_through_shell_and_make(prepared):
    given = {"BIASES": "-1", "SHIFTS": "1.65", "SCHEDULES": "laplace:mean=0,scale=1.5", "SEEDS": "3", "STEPS": "2"}
    given |= {"SAMPLES": "20", "WALK": "3", "IMAGES": "4", "OMP_NUM_THREADS": "1", "JOBS": "1"}
    line = ["sh", SWEEP / "sweep.sh", prepared]
    variables = environment(**given, PATH=BIN, PYTHON=sys.executable)
    done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = read_yaml(prepared / "runs/-1_1.65_laplace+mean=0^scale=1.5_3/config.yaml")["settings"]
    assert settings["weighting"] == "sigmoid:bias=-1" and (settings["seed"], settings["steps"]) == (3, 2)
    assert settings["schedule"] == "laplace:mean=0,scale=1.5,shift=1.65"
    result = json.loads((prepared / "results.jsonl").read_text())
    assert result["distance"] > 0 and 0 <= result["accuracy"] <= 1 and result["bpd"] > 1
    assert (prepared / "sweep.md").read_text() == done.stdout
    again = subprocess.run(line, env={**variables, "PYTHON": "false"}, capture_output=True, check=False)
    assert again.returncode == 0 and not again.stdout, "all is done"


# The tutorial


def write_idx(path, array):
    """An array of bytes in the format of MNIST's files, compressed."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run_and_fill_its_page(tmp_path):
    """Digits of 28 pixels as the four files, 160 to learn from and 40 to judge by."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    images, labels = load_digits(return_X_y=True)
    images = np.pad(np.kron(images[:200].reshape(-1, 8, 8) * 15, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    for name, rows in (("train", slice(160)), ("t10k", slice(160, 200))):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images[rows])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels[rows])
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")
    template = examples / "fashion/tutorial.md.j2"
    text = template.read_text()
    for pattern, smaller in ((r"-n 100 ", "-n 20 "), (r"(-n|--limit) \d{3,}", r"\1 40"), (r"--steps 20", "--steps 2")):
        text = re.sub(pattern, smaller, text)
    template.write_text(text)
    variables = environment(PATH=BIN, ELBO_TRAIN_STEPS="4", ELBO_TRAIN_PREVIEW_EVERY="2")
    line = ["sh", examples / "fashion/demo.sh", folder, tmp_path / "out"]
    done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stdout and "error:" not in done.stdout, done
    writer = [sys.executable, examples / "fashion/write_tutorial.py", tmp_path / "out", tmp_path / "docs"]
    subprocess.run(writer, check=True)
    page = (tmp_path / "docs/tutorial.md").read_text()
    commands = re.findall(r"^elbo .*", text, re.M)
    assert len(commands) > 8 and all(command in page for command in commands)
    for picture in re.findall(r"\]\((tutorial/\S+\.png)\)", page):
        with Image.open(tmp_path / "docs" / picture) as image:
            assert min(image.size) > 28


def test_the_notebook_shows_tables_plots_and_a_bar(trained, digits, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    _ = pytest.importorskip("ipykernel")
    (tmp_path / "run").symlink_to(trained)
    (tmp_path / "test.h5").symlink_to(digits)
    notebook = import_module("nbformat").read(EXAMPLES / "run.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    kinds = [kind for out in outputs for kind in out.get("data", {})]
    bars = "".join(out.get("text", "") for out in outputs if out["output_type"] == "stream")
    assert (kinds.count("image/png"), kinds.count("text/html")) == (2, 2)
    widgets = kinds.count("application/vnd.jupyter.widget-view+json")  # where ipywidgets is installed
    assert widgets == 2 or ("100/100" in bars and "400/400" in bars)
