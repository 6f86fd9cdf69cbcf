"""Code that pages show runs: docs/python.md and docs/extending.md from an installed wheel, and the examples of the man pages."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import Classifier, load
from harness import BIN, environment, heed_signals

from elbocli.files.yaml_text import read_yaml

ROOT = Path(__file__).parent.parent
TYPED = """
from collections.abc import Iterator
import torch
import elbocli
from torch import Tensor, nn


def batches(path: str) -> Iterator[tuple[Tensor, Tensor]]:
    data: elbocli.Dataset = elbocli.open_dataset(path)
    yield elbocli.normalised(data.batch(range(8)), torch.device("cpu")), torch.from_numpy(data.labels[:8])


def train(network: nn.Module, path: str) -> float:
    loss = elbocli.DiffusionLoss(elbocli.weighting("sigmoid:bias=2"), "adaptive", elbocli.prediction("v"))
    log = elbocli.LossLogWriter("losslog.jsonl", loss.edges, dimensions=64)
    for x, labels in batches(path):
        terms: elbocli.LossTerms = loss(network, x, labels)
        terms.loss.mean().backward()  # type: ignore[no-untyped-call]  # torch's own
        log.write(loss.step, loss.images, loss.take_sums())
    schedule: elbocli.Schedule = elbocli.schedule("cosine", -10, 10)
    drawn: Tensor = elbocli.draw(network, loss.prediction, (1, 8, 8), 4, schedule=schedule, sampler=elbocli.sampler("ddim"))
    bound = elbocli.variational_bound(network, pixels=elbocli.open_dataset(path).batch(range(8)), loss=loss)
    run: elbocli.TrainedRun = elbocli.open_run("run")
    return (bound.bpd or 0.0) + float(drawn.mean()) + run.step
"""


@pytest.mark.parametrize(("epochs", "least", "most"), [(2, 6, 9), pytest.param(20, 5, 7, marks=pytest.mark.slow)])
def test_the_page_on_python_runs_and_its_network_learns(epochs, least, most, run_page, tmp_path):
    page = (ROOT / "docs/python.md").read_text()
    assert "range(20)" in page
    (tmp_path / "page.md").write_text(page.replace("range(20)", f"range({epochs})"))
    said = run_page(tmp_path / "page.md", tmp_path)
    assert "never rises for logsnr -15 to 15" in said
    bpd = float(said.split(" ± ")[0].split()[-1])
    assert least < bpd < most, "this network is at 6.3 bits after 20 epochs, and above 14 before the first"
    assert read_yaml(tmp_path / "schedule.yaml")["format"] == "elbo-schedule"


def test_the_page_on_extending_runs_and_the_run_remembers_its_plugin(run_page, elbo, tmp_path):
    run_page(ROOT / "docs/extending.md", tmp_path)
    assert [plugin["file"] for plugin in read_yaml(tmp_path / "run/config.yaml")["plugins"]] == ["mine.py"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["spread[pooled]"] > 0 and scores["frechet_distance[pooled]"] > 0
    assert math.isfinite(json.loads((tmp_path / "bound.json").read_text())["bpd"])
    assert "bump:center=1" in (tmp_path / "report.html").read_text()
    line = ("sample", "run", "-n", 1, "--steps", 2, "-o", "x.npy")
    lacking = elbo(*line, cwd=tmp_path)
    assert lacking.returncode == 2 and b"mine.py" in lacking.stderr and b"--plugin" in lacking.stderr
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# changed\n")
    changed = elbo(*line, "--plugin", "mine.py", cwd=tmp_path)
    assert changed.returncode == 0 and b"has changed since" in changed.stderr


@pytest.mark.slow
def test_what_uses_the_api_passes_strict_type_checks(installed, tmp_path):
    (tmp_path / "uses.py").write_text(TYPED)
    result = installed.run("python", "-m", "mypy", "--strict", "--cache-dir", "cache", "uses.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_installed_package_brings_plugins_by_its_entry_point(installed, tmp_path):
    site = next((installed.folder / "lib").glob("python*/site-packages"))
    metadata = site / "elbo_zoo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elbo-zoo\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[elbo.plugins]\nzoo = elbo_zoo\n")
    (site / "elbo_zoo.py").write_text(
        "from elbocli.plugin import weighting\n\n\n"
        "@weighting('zoo', formula='1/2', monotone=True, source='a package')\ndef zoo(logsnr):\n    return logsnr * 0 + 0.5\n"
    )
    try:
        assert "zoo" in installed.run("elbo", "weights", "list", cwd=tmp_path).stdout
        assert "never rises" in installed.run("elbo", "weights", "check", "zoo", cwd=tmp_path).stdout
    finally:
        (site / "elbo_zoo.py").unlink()
        shutil.rmtree(metadata)


# Examples of the man pages, in a folder with small things of the names they use

SMALLER = {
    r"-n \d{4,}": "-n 60",
    "step-00010000": "step-00000010",
    "node 8": "node 2",
    "every 5000": "every 2",
    "split 1000": "split 100",
    "--protocol adm": "--protocol adm --allow-mismatch",
}
"""Replacements that make the examples small; the environment sets what an example does not."""
SETTINGS = {
    "ELBO_DATA": "out.h5",
    "ELBO_TRAIN_STEPS": "20",
    "ELBO_TRAIN_SNAPSHOT_EVERY": "2",
    "ELBO_SAMPLE_STEPS": "2",
    "ELBO_EVAL_EXTRACTOR": "elbo-tiny",
    "ELBO_EVAL_KID_SUBSET_SIZE": "40",
    "ELBO_BOUND_N": "40",
}
ELSEWHERE = re.compile("ILSVRC|CLS-LOC|train-")
"""ImageNet as it is published, and webdataset shards: tests/prep has them."""


def examples():
    """The code of each, as man/build.py has it. Quick is the first of some commands."""
    for command, listed in load(ROOT / "man/build.py").EXAMPLES.items():
        for index, (_, code) in enumerate(listed):
            if not ELSEWHERE.search(code):
                quick = f"{command}-{index}" in ("elbo sample-0", "elbo adapt-0", "elbo info-0")
                yield pytest.param(code, id=f"{command}-{index}", marks=[] if quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def world(elbo, digits_folder, digits, preset, tmp_path_factory):
    """Make all files that the examples name."""
    folder = tmp_path_factory.mktemp("world") / "world"
    (folder / "scheduler").mkdir(parents=True)
    for name in ("imagenet", "digits"):
        (folder / name).symlink_to(digits_folder)
    for name in ("out", "other", "test", "big"):
        shutil.copy(digits, folder / f"{name}.h5")
    (folder / "preset.yaml").write_text(preset.read_text().replace("ema: 0.9,", "ema: [0.9, 'power:std=.1'],"))
    (folder / "settings.yaml").write_text("batch: 8\n")
    config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
    config |= {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    shape = (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),)
    program = torch.export.export(Classifier(), shape, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},))
    torch.export.save(program, folder / "classifier.pt2")
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    np.savez_compressed(folder / "VIRTUAL_imagenet64_labeled.npz", images, **statistics)
    for line in (
        ("train", "out.h5", "-o", "run", "--preset", "preset.yaml", "--save-every", 10, "--keep-last", 3),
        ("sample", "run", "-n", 60, "-o", "samples.npz"),
        ("sample", "run", "-n", 60, "-o", "samples.h5"),
        ("eval", "out.h5", "--metrics", "fid", "--save-stats", "ref.npz"),
    ):
        result = elbo(*line, cwd=folder, env=SETTINGS)
        assert result.returncode == 0, result.stderr
    for name in ("a", "b", "worse"):
        shutil.copytree(folder / "run", folder / name)
    return folder


@pytest.mark.parametrize("code", [*examples()])
def test_an_example_runs(code, world, tmp_path, request):
    if "jq" in code and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    here = shutil.copytree(world, tmp_path / "here", symlinks=True)
    if "elbo train" in code and "adapt run" not in code:
        shutil.rmtree(here / "run")  # it is this example that makes it
    for out in re.findall(r"(?:-o|>|--save-stats|--save-features|--card|--plot|prep \S+|merge) (\S+\.\w+)", code):
        (here / out).unlink(missing_ok=True)
    for pattern, other in SMALLER.items():
        code = re.sub(pattern, other, code)
    variables = environment(**SETTINGS, PATH=BIN, HOME=str(tmp_path), OMP_NUM_THREADS="1")
    if "--preset" not in code:
        variables["ELBO_TRAIN_PRESET"] = "preset.yaml"
    if "train --preset" in code:
        del variables["ELBO_DATA"]
        for data in here.glob("*.h5"):
            data.unlink()
    if "adm" in code:
        variables["ELBO_EVAL_EXTRACTOR"] = "inception-v3-compat"
        variables["ELBO_EVAL_EXTRACTOR_WEIGHTS"] = str(request.getfixturevalue("inception_weights"))
    line = ["bash", "-e", "-o", "pipefail", "-c", code]
    how = {"capture_output": True, "text": True, "check": False, "preexec_fn": heed_signals}
    result = subprocess.run(line, cwd=here, env=variables, **how)
    assert "error: " not in result.stderr and "Traceback" not in result.stderr, result.stderr
    # Checks of a weighting tell by their exit code.
    assert result.returncode == 0 or "weights check" in code, result.stderr
