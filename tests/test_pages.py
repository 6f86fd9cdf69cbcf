"""Code on all pages and in the examples of the man pages runs; docs/python.md and docs/extending.md from an installed wheel."""

import contextlib
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import timm
import torch
from calls import Classifier, load
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from harness import BIN, declarations_kept, environment, heed_signals
from peers import adm_unet, dit, edm2, edm_files, edm_unet
from peers.parts import draw

from elbocli import main
from elbocli.files.yaml_text import read_yaml

ROOT = Path(__file__).parent.parent
TYPED = """
from collections.abc import Iterator
import torch
import elbocli
from torch import Tensor, nn


def batches(path: str) -> Iterator[tuple[Tensor, Tensor]]:
    data: elbocli.Dataset = elbocli.open_dataset(path)
    yield elbocli.normalised(data.read(range(8)), torch.device("cpu")), torch.from_numpy(data.labels[:8])


def train(network: nn.Module, path: str) -> float:
    loss = elbocli.DiffusionLoss(elbocli.weighting("sigmoid:bias=2"), "adaptive", elbocli.prediction("v"))
    log = elbocli.LossLogWriter("losslog.jsonl", loss.edges, dimensions=64)
    for x, labels in batches(path):
        terms: elbocli.LossTerms = loss(network, x, labels)
        terms.loss.mean().backward()  # type: ignore[no-untyped-call]  # torch's own
        log.write(loss.step, loss.images, loss.take_sums())
    schedule: elbocli.Schedule = elbocli.schedule("cosine", -10, 10)
    drawn: Tensor = elbocli.draw(network, loss.prediction, (1, 8, 8), 4, schedule=schedule, sampler=elbocli.sampler("ddim"))
    bound = elbocli.variational_bound(network, pixels=elbocli.open_dataset(path).read(range(8)), loss=loss)
    run: elbocli.TrainedRun = elbocli.open_run("run")
    return (bound.bpd or 0.0) + float(drawn.mean()) + run.step
"""


@pytest.mark.parametrize(("epochs", "least", "most"), [(2, 6, 9), pytest.param(20, 5, 7, marks=pytest.mark.slow)])
def test_the_page_on_python_runs_and_its_network_learns(epochs, least, most, run_page, elbo, tmp_path):
    page = (ROOT / "docs/python.md").read_text()
    assert "range(20)" in page
    (tmp_path / "page.md").write_text(page.replace("range(20)", f"range({epochs})"))
    said = run_page(tmp_path / "page.md", tmp_path)
    assert "never rises for logsnr -15 to 15" in said
    bpd = float(said.split(" ± ")[0].split()[-1])
    assert least < bpd < most, "this network is at 6.3 bits after 20 epochs, and above 14 before the first"
    assert read_yaml(tmp_path / "schedule.yaml")["format"] == "elbo-schedule"
    guided = elbo("sample", "dit", "--steps", 2, "--guidance-scale", 2, "--plugin", "mine.py", "-o", "x.npy", cwd=tmp_path)
    assert guided.returncode == 2, "the page's loop trains no row for 'no class'"


def test_the_page_on_extending_runs_and_the_run_remembers_its_plugin(run_page, elbo, tmp_path):
    run_page(ROOT / "docs/extending.md", tmp_path)
    assert [plugin["file"] for plugin in read_yaml(tmp_path / "run/config.yaml")["plugins"]] == ["mine.py"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert all(scores["scores"][f"{name}[pooled]"]["value"] > 0 for name in ("spread", "frechet_distance"))
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
        assert "zoo" in installed.run("elbo", "list", cwd=tmp_path).stdout
        assert "never rises" in installed.run("elbo", "weights", "check", "zoo", cwd=tmp_path).stdout
    finally:
        (site / "elbo_zoo.py").unlink()
        shutil.rmtree(metadata)


# Commands on pages and in the man pages, in a folder with small things of the names they use

SHELL = ROOT / "tests/pages.sh"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WHOLE = ("python", "extending", "tutorial")
"""Pages whose marked blocks run whole: the tests above, and test_examples.py. Other code on them runs here."""
COMMAND = re.compile(r"^(?!elbo [\w ]+: )(?:\S+=\S+ )*(?:\(ulimit|elbo|torchrun|python3?|make|pip|sh|man) ", re.M)
FORM = re.compile(r"…|\.{3}|[A-Z]{3,}\b|\w\|\w|^elbo (?:weights )?[a-z0-9]+(?: --[\w-]+)?$")
"""Synopses, and names of commands and options, in the text: not whole commands. test_docs.py looks up their options."""
NOT_RUN = {
    "dinov2_vitl14_pretrain": "needs published weights of 1.2 GB",
    "elbo import SOURCE RUN": "is a form of the command",
    "networks/demo.sh": "runs in tests/importer/test_own_network.py",
    "examples/recipes.py": "writes into docs/; `make recipes` runs it",
}
"""A part of the block → the reason why it is only parsed."""
SMALLER = {
    r"-n \d{3,}": "-n 12",
    r"((?:steps|draws)[= ])\d+": r"\g<1>4",
    "step-00010000": "step-00000010",
    "node 8": "node 2",
    "every 5000": "every 2",
    "split 1000": "split 100",
    "--size 256 --latents": "--size 16 --latents",
    "--protocol": "--allow-mismatch --protocol",
    "--metrics copying": "--copying-cells 1 --metrics copying",
    r"--ref REF\b": "--ref s0.h5 --allow-mismatch",
    "--micro-batch 256": "--micro-batch 4",
    r"adm256$": "adm256 --size 8 --attention heads=2",
    r"convnext_base\S+ 64 \S+": "test_convnext 32 convnext.pt2 convnext.pth",
    "elbo=B.json": "elbo=A.json",
    "train imagenet256.h5": r"\g<0> -o run256",
    "elbo train --preset": "env --unset ELBO_DATA --chdir empty elbo train --preset",
    "bench/run.py": r"\g<0> --small",
    "pytest -m cuda": r"\g<0> --collect-only $ROOT/tests/train/test_cuda.py",
}
"""Replacements that make commands small, or name what is here; the environment sets what a command does not."""
SETTINGS = {
    "ELBO_DATA": "out.h5",
    "ELBO_TRAIN_STEPS": "20",
    "ELBO_TRAIN_SNAPSHOT_EVERY": "2",
    "ELBO_SAMPLE_STEPS": "2",
    "ELBO_EVAL_EXTRACTOR": "elbo-tiny",
    "ELBO_EVAL_KID_SUBSET_SIZE": "40",
    "ELBO_BOUND_N": "40",
}
SWEEP = {"BIASES": "2", "SHIFTS": "0", "SCHEDULES": "cosine", "SEEDS": "0"}
SWEEP |= {"STEPS": "4", "SAMPLES": "20", "WALK": "2", "IMAGES": "4"}
"""One setting of examples/sweep."""
WRITERS = "-o|>|--save-\\w+|--card|--plot|--curve|--log|--neighbours|--sheet|prep \\S+|import \\S+|write \\S+"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
ROUNDING = re.compile(r"\S+e-1\d, at logsnr \S+")
QUICK = ("docs/commands.md", "docs/prep.md", "elbo sample-0", "elbo adapt-0", "elbo info-0")


def parts(page):
    """(line of the page, language, code) of each paragraph of a block, and of each whole command in the text."""
    text = page.read_text()
    for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$|`([^`\n]+)`", text, re.M | re.S):
        language, block, inline = found.groups()
        code = block or inline.replace("\\|", "|")
        code = "\n".join(re.findall(r"^\$ (.*)", code, re.M)) or code  # without output
        if not ((language and page.stem in WHOLE) or (inline and FORM.search(code))):
            for part in [code] if language == "python" else code.split("\n\n"):
                if language == "python" or COMMAND.search(part):
                    yield text.count("\n", 0, found.start()) + 1, language, part


CASES = {str(page.relative_to(ROOT)): [*parts(page)] for page in PAGES} | {
    f"{command}-{index}": [(index, "sh", code)]
    for command, listed in load(ROOT / "man/build.py").EXAMPLES.items()
    for index, (_, code) in enumerate(listed)
}
"""Commands of each page, in order, and of each example of a man page."""


@pytest.fixture(scope="module")
def world(elbo, digits_folder, digits, preset, autoencoder, tmp_path_factory):
    """Make all files that the commands name."""
    folder = tmp_path_factory.mktemp("world") / "world"
    for name in ("scheduler", "empty", "work", "full"):
        (folder / name).mkdir(parents=True)
    links = {"first.h5": digits} | dict.fromkeys(("digits", "imagenet", "photos"), digits_folder)
    links |= dict.fromkeys(("vae", "sd-vae-ft-mse", "sd-vae-ft-ema"), autoencoder)
    for name, target in (links | {name: ROOT / name for name in ("examples", "tests", "tools")}).items():
        (folder / name).symlink_to(target)
    (folder / "preset.yaml").write_text(preset.read_text().replace("ema: 0.9,", "ema: [0.9, 'power:std=.1'],"))
    (folder / "settings.yaml").write_text("batch_size: 8\npreview_every: 0\n")
    plugin = re.search(r"^```python\n(# mine.py.*?)^```", (ROOT / "docs/extending.md").read_text(), re.M | re.S)
    (folder / "mine.py").write_text(plugin[1])
    config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
    config |= {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    make_published(folder)
    subprocess.run(["bash", "-e", "-c", f". {SHELL}; make_files"], cwd=folder, check=True)
    for line in (
        ("prep", "digits", "test.h5", "--size", 8, "--subset", "val", 0.3),
        ("train", "out.h5", "-o", "run", "--preset", "preset.yaml", "--save-every", 10, "--keep-last", 3),
        ("sample", "run", "-n", 60, "-o", "samples.npz"),
        *(("sample", "run", "-n", 60, "--seed", seed, "-o", f"s{seed}.h5") for seed in range(3)),
        ("eval", "out.h5", "--metrics", "fid", "--save-stats", "ref.npz", "--save-features", "ref.safetensors"),
        ("adapt", "run", "-o", "schedule.yaml"),
    ):
        result = elbo(*line, cwd=folder, env=SETTINGS)
        assert result.returncode == 0, result.stderr
    scores = elbo("eval", "s0.h5", "s1.h5", "--ref", "ref.npz", cwd=folder, env=SETTINGS)
    assert scores.returncode == 0, scores.stderr
    for name in ("a", "b", "fid"):
        (folder / f"{name}.json").write_bytes(scores.stdout)
    for name, seed in zip(("a0", "a1", "a2", "a", "b0", "b1", "b2", "b", "samples"), (0, 1, 2, 0, 1, 2, 0, 1, 0)):
        shutil.copy(folder / f"s{seed}.h5", folder / f"{name}.h5")
    for name in ("a", "b", "worse", "demo/run-2-sigmoid-cosine"):
        shutil.copytree(folder / "run", folder / name)
    return folder


def make_published(folder):
    """Small networks and statistics in the files of published ones."""
    shape = {"size": 8, "levels": (1,), "attention": ()}
    torch.save(draw(adm_unet.UNetModel, **shape).state_dict(), folder / "256x256_diffusion.pt")
    for name in ("DiT", "SiT"):
        torch.save(draw(dit.DiT, depth=1).state_dict(), folder / f"{name}-XL-2-256x256.pt")
    network = draw(edm_unet.EDMPrecond, **shape, classes=10, image_channels=1)
    edm_files.write_pickle(folder / "edm-imagenet-64x64-cond-adm.pkl", {"ema": network})
    for name, classes in (("s-2147483-0.130", 10), ("s-2147483-0.025", 10), ("xs-uncond-2147483-0.025", 0)):
        network = draw(edm2.Precond, **shape, classes=classes, image_channels=4).half()
        edm2.write_snapshot(folder / f"edm2-img512-{name}.pkl", network, encoder=edm2.vae_encoder())
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, norm_num_groups=4, **blocks)
    pipeline: Any = DDPMPipeline(unet, DDPMScheduler())
    pipeline.save_pretrained(folder / "ddpm-ema-cifar10-32")
    torch.save(timm.create_model("test_convnext").state_dict(), folder / "convnext.pth")
    batches = (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),)
    sizes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    torch.export.save(torch.export.export(Classifier(), batches, dynamic_shapes=sizes), folder / "classifier.pt2")
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    for name in ("VIRTUAL_imagenet64_labeled", "VIRTUAL_imagenet256_labeled", "admnet_guided_upsampled_imagenet256"):
        np.savez_compressed(folder / f"{name}.npz", images, **(statistics if name[:3] != "adm" else {}))
    np.savez(folder / "statistics.npz", mu=statistics["mu"], sigma=statistics["sigma"])
    (folder / "img512.pkl").write_bytes(pickle.dumps({"fd_dinov2": statistics}))


@pytest.mark.parametrize("name", CASES)
def test_commands_on_pages_and_in_examples_are_understood(name, world, tmp_path, monkeypatch):
    """A shell tells what it would give to `elbo`, whose options and values are then parsed."""
    monkeypatch.chdir(world)
    (tmp_path / "calls").touch()
    for _, language, code in CASES[name]:
        if language != "python":
            variables = environment(CALLS=str(tmp_path / "calls"), ROOT=str(ROOT))
            line = ["bash", "-c", f". {SHELL}; record_calls; {code}"]
            subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, check=False)
    for call in (tmp_path / "calls").read_text().split("\0\n")[:-1]:
        command: Any = main.elbo
        words = call.split("\0")
        while isinstance(command, click.Group) and words[:1] and words[0][0] != "-":
            command = command.get_command(click.Context(command), words[0])
            words = words[1:]
        with contextlib.suppress(click.exceptions.Exit), declarations_kept():
            command.make_context(call.replace("\0", " "), words)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if re.search(r"^\$ ", page.read_text(), re.M)], ids=lambda page: page.stem
)
def test_output_that_a_page_shows_is_what_the_command_prints(page, elbo, digits, preset, tmp_path):
    """Sessions on a page; `…` replaces lines. Rounding errors depend on the machine, and all numbers of a run on the run."""
    line = ("train", digits, "-o", "run", "--preset", preset, "--steps", 20, "--weighting", "uncertainty", "--schedule", "edm")
    assert elbo(*line, cwd=tmp_path).returncode == 0
    sessions = re.findall(r"^\$ elbo ([^|\n]*)\n((?:(?!\$ |```).*\n)*)", page.read_text(), re.M)
    for line, shown in sessions:
        result = elbo(*line.split(), cwd=tmp_path)
        varying = NUMBER if "run" in line.split() else ROUNDING
        shown, printed = (varying.sub("0", text).splitlines() for text in (shown, (result.stdout + result.stderr).decode()))
        assert shown == printed or ("…" in shown and {*shown} - {"…"} <= {*printed}), line
    assert sessions


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES])
def test_commands_on_pages_and_in_examples_run(name, world, tmp_path, request):
    here = shutil.copytree(world, tmp_path / "here", symlinks=True)
    variables = environment(**SETTINGS, **SWEEP, PATH=BIN, HOME=str(here), OMP_NUM_THREADS="1", ROOT=str(ROOT))
    variables |= {"PYTHON": sys.executable, "DATA": "fashion-mnist"}
    failed = []
    how = {"cwd": here, "capture_output": True, "text": True, "check": False, "preexec_fn": heed_signals}
    for number, language, code in CASES[name]:
        if any(part in code for part in NOT_RUN):
            continue
        whole = code.replace("\\\n", " ")
        outs = re.findall(rf"(?:{WRITERS}) (\w[\w./$-]*)", whole)
        if re.search(r"(?:elbo|elbocli) train (?!.*(?:-o |--dry-run|--help))|train \S+\.h5.* -o run\b", whole):
            outs.append("run")  # it is this command that makes it
        for out in (found for name in outs for found in here.glob(re.sub(r"\$\w+", "?", name))):
            if out.is_dir() and not out.is_symlink():
                shutil.rmtree(out)
            else:
                out.unlink(missing_ok=True)
        for pattern, other in SMALLER.items():
            code = re.sub(pattern, other, code, flags=re.M)
        own = re.search("--(preset|init)", code)
        more = {"ELBO_TRAIN_CONFIG": str(here / "settings.yaml")} if own else {"ELBO_TRAIN_PRESET": "preset.yaml"}
        if "--protocol" in code:
            weights = str(request.getfixturevalue("inception_weights"))
            more |= {"ELBO_EVAL_EXTRACTOR": "inception-v3-compat", "ELBO_EVAL_EXTRACTOR_WEIGHTS": weights}
        shell = ["bash", "-e", "-o", "pipefail", "-c", f". {SHELL}\n{code}"]
        result = subprocess.run(["python", "-c", code] if language == "python" else shell, env=variables | more, **how)
        # Checks of a weighting tell by their exit code.
        if re.search("error: |Traceback", result.stderr) or (result.returncode and "weights check" not in code):
            failed.append(f"line {number}: {code}\n{result.stderr}")
    assert not failed, "\n".join(failed)
