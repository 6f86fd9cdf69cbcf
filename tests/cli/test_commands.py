"""Commands as a user types them: exit codes and both streams."""

import fcntl
import hashlib
import io
import json
import os
import pickle
import pty
import signal
import struct
import subprocess
import sys
import termios
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.files.sample_files import npy_header
from elbocli.main import elbo as group
from elbocli.weights.command import REGISTRIES, weights

HEAVY = ("torch", "numpy", "h5py", "matplotlib", "PIL", "yaml", "jinja2")
VERBS = [
    "prep",
    "merge",
    "train",
    "adapt",
    "grid",
    "ema",
    "sample",
    "eval",
    "compare",
    "bound",
    "optimum",
    "report",
    "weights",
    "weights list",
    "weights show",
    "weights check",
    "weights plot",
    "info",
    "completion",
]


def check(result: Any, code: int, *words: str) -> None:
    """The exit code; every word on stderr; no traceback; nothing on stdout when it failed."""
    stderr = result.stderr.decode()
    assert result.returncode == code, (result.returncode, stderr)
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr, (word, stderr)
    if code not in (0, 143):
        assert result.stdout == b""
        assert "error: " in stderr


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "train --help",
        "weights list",
        "weights list extractors",
        "weights list factors",
        "--version",
        *[f"{verb} -h" for verb in VERBS],
    ],
)
def test_help_and_names_import_nothing_heavy(line: str) -> None:
    code = f"import sys; from elbocli.main import run; code = run({line.split()!r}); sys.exit(code or any(m in sys.modules for m in {HEAVY!r}) * 77)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout and not result.stderr


def test_every_command_has_help_for_itself_and_each_option() -> None:
    def walk(command: Any, path: str) -> None:
        assert command.help and command.help.strip().splitlines()[0].strip().endswith((".", ":", ","))
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help or hasattr(parameter.type, "choices") or "logsnr" in parameter.opts[0], (
                    path,
                    parameter.name,
                )
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                walk(command.get_command(context, name), f"{path} {name}")

    walk(group, "elbo")


def test_list_says_every_kind_it_knows() -> None:
    words = (weights.commands["list"].help or "").replace(",", "").replace(".", "").split()
    assert set(REGISTRIES) <= set(words)


def test_no_arguments_shows_help_and_is_wrong_usage(elbo: Callable[..., Any]) -> None:
    result = elbo()
    assert result.returncode == 2 and b"Commands:" in result.stderr and not result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "nan"], ["expected float > 0"]),
        (["--lr", "inf"], ["expected float <="]),
        (["--lr", "-1"], ["expected float > 0"]),
        (["--lr", "1e99"], ["expected float <="]),
        (["--lr", "x"], ["expected float"]),
        (["--steps", "0"], ["expected int >= 1"]),
        (["--steps", "9999999999999"], ["expected int <="]),
        (["--batch", "-3"], ["expected int >= 1"]),
        (["--ema", "1.5"], ["beta is 1.5"]),
        (["--ema", "powr:std=.1"], ["no average is called 'powr'", "power"]),
        (["--ema", "power:std=.3"], ["std is 0.3"]),
        (["--ema", "halflife:images=0"], ["images is 0; it must be above 0"]),
        (["--ema", "halflife:ramp=-1"], ["ramp is -1; it must be"]),
        (["--ema", "0.9", "--ema", "decay:beta=.9"], ["0.9 is given twice"]),
        (["--ema", "nan"], ["is not a number between"]),
        (["--snapshot-every", "-1"], ["expected int >= 0"]),
        (["--weighting", "sigmoidal"], ["no weighting is called 'sigmoidal'", "sigmoid"]),
        (["--weighting", "sigmoid:bias=nan"], ["is not a number between"]),
        (["--weighting", "sigmoid:slope=2"], ["no parameter 'slope'", "bias"]),
        (["--weighting", "edm:std=-1"], ["std is -1; it must be above 0"]),
        (["--weighting", "edm", "--bias", "2"], ["edm has no parameter 'bias'"]),
        (["--mean", "2"], ["No such option", "--mean"]),
        (["--preset", "latents256"], ["--preset latents256 is for latents", "holds pixels"]),
        (["--weighting", "sigmoid:bias"], ["'bias' is not a number"]),
        (["--schedule", "cosin"], ["no schedule is called 'cosin'", "cosine"]),
        (["--schedule", "nowhere.yaml"], ["nowhere.yaml: no such schedule"]),
        (["--prediction", "w"], ["no prediction is called 'w'"]),
        (["--logsnr-min", "5", "--logsnr-max", "-5"], ["must rise"]),
        (["--logsnr-min", "-1e5"], ["expected float >= -50"]),
        (["--preset", "huge"], ["no preset is called 'huge'", "imagenet64"]),
        (["--precision", "fp8"], ["'fp8' is not one of"]),
        (["--time-limit", "90"], ["expected a duration"]),
        (["--set", "lr=1"], ["expected network.KEY=VALUE or training.KEY=VALUE"]),
        (["--set", "training.beta2=1"], ["beta2 is 1: expected float <="]),
        (["--device", "tpu9"], ["device 'tpu9' can't be used here"]),
        (["--bogus"], ["No such option"]),
    ],
)
def test_nonsense_options_are_refused(
    options: list[str], words: list[str], elbo: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    result = elbo("train", digits, "-o", "run", *options, cwd=tmp_path)
    check(result, 1 if "nowhere.yaml" in options else 2, "elbo train: error: ", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ("learning_rate: 1e-3\n", 2, ["unknown setting 'learning_rate'", "lr"]),
        ("lr: 1e-3\nlr: 1e-4\n", 1, ["'lr' is given twice"]),
        ("beta2: 2\n", 2, ["c.yaml: beta2 is 2: expected float <="]),
        ("lr: nan\n", 2, ["expected float > 0"]),
        ("lr: true\n", 2, ["expected float"]),
        ("seed: 1.5\n", 2, ["seed is 1.5: expected int"]),
        ("flip: 3\n", 2, ["flip is 3: expected bool"]),
        ("weighting: 3\n", 2, ["weighting is 3: expected str"]),
        ("schedule: no\n", 2, ["schedule is False: expected str"]),
        ("prediction: 2\n", 2, ["prediction is 2: expected str"]),
        ("format: elbo-run\nversion: 1\nsettings: [1]\n", 1, ["c.yaml: "]),
        ("lr: [1, 2]\n", 2, ["lr is [1, 2]"]),
        ("ema: []\n", 2, ["expected averages"]),
        ("ema: {power: .1}\n", 2, ["expected averages"]),
        ("ema: [0.9, [1]]\n", 2, ["expected averages"]),
        ("- lr\n", 1, ["expected 'key: value' lines"]),
        ("lr: {\n", 1, ["not usable YAML"]),
        ("on_checkpoint: touch hacked\n", 2, ["c.yaml: unknown setting 'on_checkpoint'"]),
        ("out: elsewhere\n", 2, ["c.yaml: unknown setting 'out'"]),
        ("lr: !!python/object/apply:os.system ['touch hacked']\n", 1, ["not usable YAML"]),
    ],
)
def test_a_bad_config_is_refused(
    content: str, code: int, words: list[str], elbo: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    check(elbo("train", digits, "--config", "c.yaml", cwd=tmp_path), code, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


def test_a_preset_runs_nothing(elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path) -> None:
    said = preset.read_text().replace("steps: 40", "steps: 1, on_checkpoint: touch hacked")
    (tmp_path / "stranger.yaml").write_text(said)
    check(elbo("train", digits, "--preset", "stranger.yaml", cwd=tmp_path), 1, "unknown setting 'on_checkpoint'")
    assert [path.name for path in tmp_path.iterdir()] == ["stranger.yaml"]


def test_a_command_for_checkpoints_comes_from_the_command_line_or_the_environment(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    line = ("train", digits, "--preset", preset, "--save-every", 1, "--steps")
    check(elbo(*line, 1, "--on-checkpoint", "touch $ELBO_STEP", cwd=tmp_path), 0)
    check(elbo(*line, 2, cwd=tmp_path, env={"ELBO_TRAIN_ON_CHECKPOINT": "touch $ELBO_STEP-env"}), 0)
    check(elbo(*line, 3, cwd=tmp_path), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2-env", "run"]
    import yaml

    config = tmp_path / "run" / "config.yaml"
    kept = yaml.safe_load(config.read_text())
    assert "on_checkpoint" not in kept["settings"]
    kept["settings"]["on_checkpoint"] = "touch hacked"  # as an earlier version kept it
    config.write_text(yaml.safe_dump(kept))
    check(elbo(*line, 4, cwd=tmp_path), 0)
    assert not (tmp_path / "hacked").exists()


def test_a_runs_config_shows_classes_as_the_run_did(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    result = elbo("train", digits, "--preset", preset, "--unconditional", "--steps", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    check(elbo("train", digits, "--config", "run/config.yaml", cwd=tmp_path), 0)


def test_command_line_over_environment_over_config_over_preset(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(f"preset: {preset}\nlr: 1e-4\nbatch: 7\nsteps: 11\n")

    def plan(*options: Any, **env: str) -> dict[str, Any]:
        import yaml

        result = elbo("train", digits, "--dry-run", "--config", "c.yaml", *options, cwd=tmp_path, env=env)
        assert result.returncode == 0, result.stderr
        return yaml.safe_load(result.stdout)

    assert [plan()[key] for key in ("lr", "batch", "steps")] == [1e-4, 7, 11]
    assert [plan(ELBO_TRAIN_LR="2e-4", ELBO_TRAIN_BATCH="9")[key] for key in ("lr", "batch", "steps")] == [2e-4, 9, 11]
    assert [plan("--batch", 5, ELBO_TRAIN_BATCH="9")[key] for key in ("lr", "batch", "steps")] == [1e-4, 5, 11]
    assert list(tmp_path.iterdir()) == [tmp_path / "c.yaml"]


def test_dry_run_plans_the_papers_network_without_memory(elbo: Callable[..., Any], tmp_path: Path) -> None:
    import yaml
    from PIL import Image

    for index in range(3):
        (tmp_path / "src" / str(index)).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "src" / str(index) / "a.png")
    assert elbo("prep", "src", "a.h5", cwd=tmp_path).returncode == 0
    result = elbo(
        "train", "a.h5", "--preset", "imagenet64", "--weighting", "edm", "--batch", 64, "--dry-run", cwd=tmp_path
    )
    plan = yaml.safe_load(result.stdout)
    assert plan["network"]["parameters"] == 295_899_267 - 997 * 768
    assert plan["memory_MB"]["weights"] == pytest.approx(4 * plan["network"]["parameters"] / 1e6, abs=0.1)
    assert "rises for logsnr -15 to -3.307778" in plan["verdict"]
    assert not (tmp_path / "run").exists()


def test_train_takes_the_only_dataset_here_and_refuses_to_guess(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    check(elbo("train", cwd=tmp_path), 1, "0 datasets here", "elbo prep")
    (tmp_path / "a.h5").write_bytes(digits.read_bytes())
    result = elbo("train", "--preset", preset, "--steps", 2, "--weighting", "sigmoid", "--bias", 2, cwd=tmp_path)
    check(result, 0, "dataset a.h5")
    assert result.stdout == b"run\n"
    (tmp_path / "b.h5").write_bytes(digits.read_bytes())
    check(elbo("train", "-o", "other", cwd=tmp_path), 1, "2 datasets here")
    result = elbo("train", "--preset", preset, "--steps", 2, "-o", "other", cwd=tmp_path, env={"ELBO_DATA": "b.h5"})
    check(result, 0)


def test_a_loss_that_is_not_finite_exits_four(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    result = elbo(
        "train",
        digits,
        "-o",
        "run",
        "--preset",
        preset,
        "--precision",
        "bf16",
        "--lr",
        1000,
        "--warmup",
        0,
        "--clip",
        0,
        "--weighting",
        "elbo:shift=0",
        "--logsnr-max",
        50,
        "--prediction",
        "x",
        "--steps",
        400,
        cwd=tmp_path,
    )
    check(result, 4, "at logsnr ", "lower --lr")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_an_existing_output_is_refused(
    elbo: Callable[..., Any], digits: Path, digits_folder: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.h5").write_text("mine")
    (tmp_path / "there.yaml").write_text("mine")
    (tmp_path / "there.svg").write_text("mine")
    for line in (
        ["prep", digits_folder, "there.h5"],
        ["adapt", trained, "-o", "there.yaml"],
        ["grid", trained, "-o", "there.yaml"],
        ["sample", trained, "-o", "there.h5"],
        ["weights", "plot", "sigmoid", "-o", "there.svg"],
        ["report", trained, "-o", "there.svg"],
        ["eval", digits, "--extractor", "elbo-tiny", "--save-stats", "there.yaml"],
    ):
        check(elbo(*line, cwd=tmp_path), 2, "already exists", "--overwrite")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "other", "link", "folder", "missing"])
def test_a_corrupt_dataset_is_refused(damage: str, elbo: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "bad.h5"
    whole = digits.read_bytes()
    if damage in ("empty", "text", "truncated"):
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[:9000]}[damage])
    elif damage == "folder":
        path.mkdir()
    elif damage == "other":
        h5py.File(path, "w").close()
    elif damage == "link":
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            del file["images"]
            file["images"] = h5py.ExternalLink("/etc/passwd", "images")
    check(elbo("train", path, cwd=tmp_path), 1, "bad.h5: ")
    if damage != "missing":
        check(elbo("info", path, cwd=tmp_path), 1, "bad.h5: ")


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


def test_pickles_that_would_run_code_are_refused(
    elbo: Callable[..., Any], digits: Path, preset: Path, trained: Path, tmp_path: Path
) -> None:
    import hashlib
    import shutil

    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    np.savez(tmp_path / "evil.npz", mu=np.array([Evil()], dtype=object), sigma=np.eye(1))
    np.savez(tmp_path / "images.npz", arr_0=np.array([Evil()], dtype=object))
    with zipfile.ZipFile(tmp_path / "evil.pt2", "w") as archive:
        archive.writestr("x/data/constants/opaque_obj_0", pickle.dumps(Evil()))
    for name in ("evil.pth", "evil.pkl"):
        check(
            elbo("eval", digits, "--ref", digits, "--extractor-weights", name, cwd=tmp_path),
            1,
            f"{name}: refused: it holds more than tensors",
        )
    check(elbo("eval", digits, "--ref", digits, "--extractor", "evil.pt2", cwd=tmp_path), 1, "evil.pt2: ")
    check(elbo("eval", digits, "--ref", "evil.npz", "--extractor", "elbo-tiny", cwd=tmp_path), 1, "evil.npz: ")
    check(elbo("eval", "images.npz", "--ref", digits, "--extractor", "elbo-tiny", cwd=tmp_path), 1, "expected uint8")
    check(elbo("info", "images.npz", cwd=tmp_path), 1, "expected uint8")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    newest = max((run / "checkpoints").iterdir())
    torch.save({"optimizer": Evil()}, newest / "state.pt")
    meta = json.loads((newest / "meta.json").read_text())
    meta["files"]["state.pt"]["sha256"] = hashlib.sha256((newest / "state.pt").read_bytes()).hexdigest()
    (newest / "meta.json").write_text(json.dumps(meta))
    check(
        elbo("train", digits, "-o", run, "--preset", preset, "--preview-every", 20, "--steps", 41, cwd=tmp_path),
        1,
        "state.pt: refused: it holds more than tensors",
    )
    assert not (tmp_path / "hacked").exists()


def test_binary_never_goes_onto_a_terminal(trained: Path) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "elbocli", "sample", str(trained), "-n", "2"], stdout=child, stderr=subprocess.PIPE
    )
    os.close(child)
    _, stderr = process.communicate(timeout=60)
    os.close(parent)
    assert process.returncode == 2 and b"standard output is a terminal" in stderr


def test_a_terminal_gets_a_progress_bar_on_stderr(digits_folder: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "elbocli", "prep", str(digits_folder), "a.h5", "--size", "8"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=child,
    )
    os.close(child)
    seen = b""
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:
            break
        seen += piece
    stdout, _ = process.communicate(timeout=60)
    os.close(parent)
    assert process.returncode == 0 and stdout == b""
    assert b"300/300" in seen or b"img/s" in seen


def test_a_pipe_from_sample_to_eval_and_a_producer_that_dies(
    elbo: Callable[..., Any], digits: Path, trained: Path
) -> None:
    sample = [sys.executable, "-m", "elbocli", "sample", str(trained), "-n", "24", "--steps", "4"]
    with subprocess.Popen(sample, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as producer:
        result = elbo("eval", "--ref", digits, "--extractor", "elbo-tiny", stdin=producer.stdout)
    check(result, 0)
    scores = json.loads(result.stdout)
    assert scores["n_samples"] == 24 and scores["n_ref"] == 300
    slow = [*sample[:-3], "64", "--steps", "4000", "--batch", "1"]
    producer = subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert producer.stdout is not None
    consumer = subprocess.Popen(
        [sys.executable, "-m", "elbocli", "eval", "--ref", str(digits), "--extractor", "elbo-tiny"],
        stdin=producer.stdout,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    producer.stdout.close()
    signal.sigtimedwait([], 6)
    producer.kill()
    stdout, stderr = consumer.communicate(timeout=60)
    producer.wait()
    assert consumer.returncode == 1 and stdout == b""
    assert b"standard input: " in stderr and (b"cut short" in stderr or b"not an NPY stream" in stderr)


def test_a_reader_that_leaves_is_no_traceback(trained: Path) -> None:
    for line in (
        f"{sys.executable} -m elbocli weights show sigmoid --points 100000 | head -2",
        f"{sys.executable} -m elbocli sample {trained} -n 4000 --steps 1 --batch 500 | head -c 10",
    ):
        result = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=120, check=False)
        assert result.returncode == 141
        assert b"Traceback" not in result.stderr and b"Exception" not in result.stderr


def test_adapt_reads_runs_logs_and_standard_input_alike(elbo: Callable[..., Any], trained: Path) -> None:
    log = (trained / "losslog.jsonl").read_bytes()
    outputs = [
        elbo("adapt", trained),
        elbo("adapt", trained / "losslog.jsonl"),
        elbo("adapt", "-", stdin=log),
        elbo("adapt", stdin=log),
    ]
    for result in outputs:
        check(result, 0, "predicted variance", "cosine", "fitted")
    assert len({result.stdout for result in outputs}) == 1
    assert outputs[0].stdout.startswith(b"format: elbo-schedule\n")


def test_a_log_that_is_written_just_now_is_read_up_to_its_last_whole_line(
    elbo: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    lines = (trained / "losslog.jsonl").read_bytes().splitlines(keepends=True)
    for name, content in {"whole": lines[:-1], "half": [*lines[:-1], lines[-1][:50]]}.items():
        (tmp_path / name).write_bytes(b"".join(content))
    whole, half = (elbo("adapt", name, cwd=tmp_path) for name in ("whole", "half"))
    assert half.returncode == 0 and half.stdout == whole.stdout
    check(elbo("info", "half", cwd=tmp_path), 0)


def test_adapt_reports_instead_of_the_schedule_or_beside_it(
    elbo: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    plain, only = elbo("adapt", trained), elbo("adapt", trained, "--report")
    check(only, 0, "low-discrepancy t", "fitted:std")
    report = json.loads(only.stdout)
    assert report["criterion"] == "loss" and report["batch"] == 16
    assert {"own", "cosine", "edm", "uniform", "fitted:loss"} <= set(report["schedules"])
    both = elbo("adapt", trained, "--report", "-o", "s.yaml", cwd=tmp_path)
    check(both, 0)
    assert json.loads(both.stdout) == report
    assert (tmp_path / "s.yaml").read_bytes() == plain.stdout
    check(elbo("adapt", trained, "--report", "-o", "s.yaml", cwd=tmp_path), 2, "s.yaml")
    check(elbo("adapt", tmp_path, "--report"), 1, "loss log")
    check(elbo("adapt", trained, "--report", "--criterion", "none"), 2, "criterion")
    check(elbo("adapt", trained, "--weighting", "edm", "--bias", 2), 2, "edm has no parameter 'bias'")
    check(elbo("adapt", trained, "--shift", "auto"), 2, "--shift")
    moved = elbo("adapt", trained, "--weighting", "sigmoid", "--bias", 3, "--shift", 1, "--monotone")
    assert b"weighting: sigmoid:bias=3,shift=1,monotone" in moved.stdout


def test_a_fitted_schedule_trains_and_samples(
    elbo: Callable[..., Any], digits: Path, preset: Path, trained: Path, tmp_path: Path
) -> None:
    check(elbo("adapt", trained, "-o", "s.yaml", "--plot", "s.svg", cwd=tmp_path), 0)
    check(
        elbo("train", digits, "-o", "run", "--preset", preset, "--schedule", "s.yaml", "--steps", 3, cwd=tmp_path),
        0,
        "schedule s.yaml",
    )
    check(elbo("sample", "run", "-n", 2, "--steps", 3, "--schedule", "s.yaml", "-o", "x.npy", cwd=tmp_path), 0)
    assert np.load(tmp_path / "x.npy").shape == (2, 8, 8, 1)
    assert (tmp_path / "s.svg").read_text().startswith("<?xml")
    check(
        elbo(
            "train", digits, "-o", "run2", "--preset", preset, "--schedule", "s.yaml", "--logsnr-min", -20, cwd=tmp_path
        ),
        2,
        "covers logsnr -10 to 10",
    )
    (tmp_path / "s.yaml").write_text((tmp_path / "s.yaml").read_text().replace("t: 0.0,", "t: 0.5,"))
    check(elbo("sample", "run", "--schedule", "s.yaml", "-o", "y.npy", cwd=tmp_path), 1, "s.yaml: knots")
    check(
        elbo("train", digits, "-o", "run", "--preset", preset, "--schedule", "s.yaml", "--steps", 4, cwd=tmp_path),
        1,
        "s.yaml",
    )


def test_what_is_no_run_is_told(elbo: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    check(elbo("sample", tmp_path, "-o", tmp_path / "x.npy"), 1, "not a run; 'elbo train")
    check(elbo("sample", digits, "-o", tmp_path / "x.npy"), 1, "not a run")
    check(elbo("adapt", tmp_path), 1, "loss log")
    check(elbo("prep", tmp_path, tmp_path / "a.h5"), 1, "no files inside")
    check(elbo("prep", tmp_path / "none", tmp_path / "a.h5"), 1, "No such file")
    check(
        elbo("eval", tmp_path / "none.npy", "--ref", digits, "--extractor", "elbo-tiny"), 1, "none.npy: no such images"
    )
    check(elbo("eval", "--ref", digits, "--extractor", "elbo-tiny", stdin=b"hello"), 1, "not an NPY stream")
    check(
        elbo("eval", "--ref", digits, "--extractor", "elbo-tiny", stdin=npy_header((3, 8, 8, 1)) + bytes(100)),
        1,
        "needs at least",
    )


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_weights_check_tells_by_its_exit_code(name: str, elbo: Callable[..., Any]) -> None:
    result = elbo("weights", "check", name, "--json")
    verdict = json.loads(result.stdout)
    assert result.returncode == (0 if WEIGHTINGS[name].traits.monotone else 1)
    assert verdict["monotone"] is WEIGHTINGS[name].traits.monotone


def test_weights_check_contradicts_a_plugins_false_claim(elbo: Callable[..., Any], tmp_path: Path) -> None:
    for name, claim in (("claimed", True), ("honest", False)):
        code = f"import elbocli.plugin as elbo\n@elbo.weighting('{name}', formula='', monotone={claim}, source='')\n"
        (tmp_path / f"{name}.py").write_text(f"{code}def w(logsnr):\n    return (-logsnr.square()).exp()\n")
        result = elbo("weights", "check", name, "--plugin", tmp_path / f"{name}.py")
        assert result.returncode == 1 and b"rises" in result.stdout, result


def test_weights_check_shows_the_public_trap(elbo: Callable[..., Any]) -> None:
    """sigmoid(b − λ) on the eps loss at uniform t, without −dλ/dt, is no sigmoid weighting; the check says how far off."""
    line = ("weights", "check", "eps-mse:sigmoid:bias=2@cosine", "--equals", "sigmoid:bias=2")
    result = elbo(*line)
    assert result.returncode == 1 and b"are not the same up to a constant" in result.stdout
    verdict = json.loads(elbo(*line, "--json").stdout)
    assert verdict["monotone"] is False and verdict["equals"]["same"] is False
    # The ratio is sech(λ/2)/π: its extremes over ±15 are 1 and sech(7.5), so the best scale is off by √cosh(7.5).
    assert verdict["equals"]["deviation"] == pytest.approx(np.cosh(7.5) ** 0.5 - 1, rel=1e-9)
    assert verdict["equals"]["scale"] == pytest.approx(1 / np.pi / np.cosh(7.5) ** 0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("one", "other", "scale"),
    [
        ("x-mse:snr+1@cosine", "v-cosine", 2 / np.pi),
        ("eps-mse@cosine", "iddpm", 1 / np.pi),  # never mind that neither is monotone
        ("u-mse@fm-ot", "fm-ot", 1),
        ("edm-mse@edm:mean=-0.4,std=1.0", "edm:mean=-0.4,std=1.0", 8),
    ],
)
def test_weights_check_knows_the_same_weighting(one: str, other: str, scale: float, elbo: Callable[..., Any]) -> None:
    result = elbo("weights", "check", one, "--equals", other, "--json")
    equals = json.loads(result.stdout)["equals"]
    assert result.returncode == 0 and equals["same"] is True
    assert equals["scale"] == pytest.approx(scale, rel=1e-9) and equals["deviation"] < 1e-12
    assert b"are the same up to a constant" in elbo("weights", "check", one, "--equals", other).stdout


def test_weights_check_stays_where_the_weighting_is(elbo: Callable[..., Any], tmp_path: Path) -> None:
    config = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps({**config, "prediction_type": "v_prediction"}))
    result = elbo("weights", "check", "scheduler_config.json", "--json", cwd=tmp_path)
    verdict = json.loads(result.stdout)
    assert result.returncode == 0 and verdict["weighting"] == "v-mse@scheduler_config.json"
    assert verdict["logsnr"] == pytest.approx([-10.12, 9.21], abs=0.01)  # MATH.md: DDPM-1000
    far = elbo("weights", "check", "scheduler_config.json", "--logsnr-min", 12, cwd=tmp_path)
    check(far, 2, "logsnr range")
    check(elbo("weights", "check", "v-mse@none.json", cwd=tmp_path), 1, "none.json: no such schedule")
    check(elbo("weights", "check", "v-mse:nope@cosine"), 2, "no factor is called 'nope'")


def test_a_run_remembers_the_scheduler_config_it_was_weighted_by(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    config = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1, "beta_schedule": "linear"}
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    line = ("train", digits, "-o", "run", "--preset", preset, "--weighting", path.name)
    check(elbo(*line, "--steps", 2, cwd=tmp_path), 0)
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "weighting: eps-mse@scheduler_config.json" in saved
    assert hashlib.sha256(path.read_bytes()).hexdigest() in saved
    check(elbo(*line, "--steps", 3, cwd=tmp_path), 0)
    path.write_text(json.dumps({**config, "beta_end": 0.2}))
    check(elbo(*line, "--steps", 4, cwd=tmp_path), 2, "files scheduler_config.json")
    spec = elbo("adapt", "run", "--weighting", "x-mse:min-snr:3@cosine", cwd=tmp_path)
    check(spec, 0)
    assert b"x-mse:min-snr:gamma=3@cosine" in spec.stdout


def test_weights_show_is_a_table_in_double_precision(elbo: Callable[..., Any]) -> None:
    result = elbo("weights", "show", "sigmoid:bias=2", "edm:monotone", "--schedule", "cosine", "--points", 7)
    table = np.genfromtxt(io.BytesIO(result.stdout), delimiter="\t", names=True, deletechars="")
    assert table.dtype.names == ("logsnr", "sigmoid:bias=2", "edm:monotone", "t", "density")
    lam = table["logsnr"]
    np.testing.assert_allclose(table["sigmoid:bias=2"], 1 / (1 + np.exp(lam - 2)), rtol=1e-14)
    np.testing.assert_allclose(table["t"][[0, -1]], [1, 0], atol=1e-14)


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_pictures_are_the_same_bytes_every_time(suffix: str, elbo: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        check(
            elbo(
                "weights",
                "plot",
                "sigmoid:bias=2",
                "edm",
                "schedule:cosine",
                "--schedule",
                "cosine",
                "-o",
                f"{name}.{suffix}",
                cwd=tmp_path,
            ),
            0,
        )
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    check(elbo("weights", "plot", "sigmoid", "-o", "c.jpg", cwd=tmp_path), 2, "name a file that ends in .svg")


def test_weights_plot_without_a_file_is_text(elbo: Callable[..., Any]) -> None:
    result = elbo("weights", "plot", "sigmoid", "edm", env={"COLUMNS": "90", "PYTHONIOENCODING": "utf-8"})
    rows = result.stdout.decode().splitlines()
    assert len(rows) == 3 and "█" in rows[0] and all(len(row) <= 90 for row in rows)


def test_info_knows_every_file(elbo: Callable[..., Any], digits: Path, trained: Path, tmp_path: Path) -> None:
    check(elbo("adapt", trained, "-o", "s.yaml", cwd=tmp_path), 0)
    check(
        elbo("eval", digits, "--extractor", "elbo-tiny", "--metrics", "fid", "--save-stats", "r.npz", cwd=tmp_path), 0
    )
    check(elbo("sample", trained, "-n", 2, "--steps", 2, "-o", "x.npz", cwd=tmp_path), 0)
    check(elbo("sample", trained, "-n", 2, "--steps", 2, "-o", "x.h5", cwd=tmp_path), 0)
    expected = {
        digits: "elbo-dataset (dataset)",
        trained: "run",
        max((trained / "checkpoints").iterdir()): "checkpoint",
        trained / "losslog.jsonl": "loss log",
        trained / "config.yaml": "config of a run",
        tmp_path / "s.yaml": "schedule",
        tmp_path / "r.npz": "reference statistics",
        tmp_path / "x.npz": "samples",
        tmp_path / "x.h5": "elbo-dataset (samples)",
    }
    for path, kind in expected.items():
        result = elbo("info", path, "--json")
        check(result, 0)
        assert json.loads(result.stdout)["is"] == kind
    assert json.loads(elbo("info", tmp_path / "x.npz", "--json").stdout)["sampler"] == "ddpm:gamma=0.2"
    check(elbo("info", tmp_path), 1, "not a file of elbo's; 'elbo info' knows")
    (tmp_path / "x.txt").write_text("hello")
    check(elbo("info", tmp_path / "x.txt"), 1, "a file that is none of elbo's")


def test_quiet_says_nothing_and_verbose_shows_where(
    elbo: Callable[..., Any], digits_folder: Path, tmp_path: Path
) -> None:
    assert elbo("prep", "-q", digits_folder, tmp_path / "a.h5").stderr == b""
    assert b"Traceback" in elbo("prep", "-v", tmp_path / "none", tmp_path / "b.h5").stderr


@pytest.mark.slow
def test_too_little_memory_is_told(trained: Path) -> None:
    line = 'ulimit -v 6000000; exec "$@"'
    sample = ["-m", "elbocli", "sample", trained, "-n", "200000", "--batch", "200000", "--steps", "1"]
    result = subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, *map(str, sample), "-o", str(trained.parent / "many.npy")],
        capture_output=True,
        check=False,
    )
    check(result, 1, "elbo sample: error: out of memory (", "smaller --batch")
    assert not (trained.parent / "many.npy").exists()


def test_the_same_command_goes_on_in_the_runs_precision(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    """Also where the device alone would choose another, and from a config.yaml of before tf32 was a precision."""
    line = ("train", digits, "-o", tmp_path / "run", "--preset", preset)
    assert elbo(*line, "--steps", 2, "--precision", "bf16").returncode == 0
    again = elbo(*line, "--steps", 3)
    assert again.returncode == 0 and b"going on after step 2" in again.stderr and b" cpu, bf16; " in again.stderr
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("settings:\n", "settings:\n  tf32: true\n"))
    assert elbo(*line, "--steps", 4).returncode == 0
    refused = elbo(*line, "--steps", 5, "--precision", "fp32")
    assert refused.returncode == 2 and b"--precision: the run has bf16, asked for fp32" in refused.stderr
    other = elbo("train", digits, "-o", tmp_path / "other", "--config", config, "--steps", 1)
    assert other.returncode == 0 and b" cpu, bf16; " in other.stderr


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native"),
    ],
)
def test_cudas_allocator_extends_its_segments_unless_the_user_has_said_how(given: dict[str, str], kept: str) -> None:
    """Torch reads the variable when it is imported; a plug-in sees it."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTORCH")}
    code = (
        "import os, sys; from elbocli.main import main; sys.argv[1:] = ['--version']\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print(*(os.environ[f'PYTORCH_{name}ALLOC_CONF'] for name in ('', 'CUDA_')), 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={**own, **given}, capture_output=True, text=True, timeout=100, check=True
    )
    assert result.stdout.splitlines()[-1] == f"{kept} {kept} False"


def test_a_plug_in_adds_a_command(elbo, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import elbocli.plugin as elbo\nfrom elbocli import ElboError\n"
        "@elbo.command('double')\n@elbo.option('-n', type=int)\n"
        "def double(n):\n    'Double a number.'\n    if n < 0:\n        raise ElboError('negative')\n    print(2 * n)\n"
    )
    assert elbo("double", "-n", 3, cwd=tmp_path).returncode == 2
    for line, env in ((("--plugin", "mine.py", "double"), {}), (("double",), {"ELBO_PLUGIN": "mine.py"})):
        assert elbo(*line, "-n", 3, cwd=tmp_path, env=env).stdout == b"6\n"
    refused = elbo("--plugin", "mine.py", "double", "-n", -3, cwd=tmp_path)
    assert refused.returncode == 1 and refused.stderr == b"elbo double: error: negative\n"
    assert b"Double a number." in elbo("--plugin", "mine.py", "--help", cwd=tmp_path).stdout
