"""`elbo import FOLDER` of diffusers: the function at every timestep is diffusers' own, and what doesn't fit is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from import_chain import trains, works
from safetensors.torch import load_file, save_file

import elbocli
from elbocli.files.yaml_text import read_yaml, yaml_text

Elbo = Callable[..., CompletedProcess[bytes]]
WHOLE = "diffusion_pytorch_model.safetensors"
LAYOUT: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "dropout": 0.1,
}


def awake(**more: Any) -> Any:
    torch.manual_seed(0)
    model: Any = UNet2DModel(**{**LAYOUT, **more})
    return model.eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, unconditional."""
    folder = tmp_path_factory.mktemp("diffusers") / "pipeline"
    whole: Any = DDPMPipeline(unet=awake(), scheduler=DDPMScheduler(num_train_timesteps=50))
    whole.save_pretrained(folder)
    return folder


@pytest.fixture
def flat(pipeline: Path, tmp_path: Path) -> Path:
    """All in one folder, as google/ddpm-cifar10-32 has it."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for file in (
        *(pipeline / "unet").iterdir(),
        pipeline / "scheduler" / "scheduler_config.json",
        pipeline / "model_index.json",
    ):
        shutil.copy(file, folder)
    return folder


def changed(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def test_a_pipeline_works_on_every_command_and_trains_further(
    elbo: Elbo, pipeline: Path, digits: Path, tmp_path: Path
) -> None:
    result = elbo("import", pipeline, "run", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    assert works(elbo, tmp_path / "run", digits)["bpd"] > 0
    trains(elbo, tmp_path / "run", digits)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(num_train_timesteps=100),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="sample"),
    ],
    ids=["linear", "cosine", "scaled"],
)
@torch.no_grad()
def test_the_function_at_every_timestep_is_diffusers_own(scheduler: Any, elbo: Elbo, tmp_path: Path) -> None:
    model = awake(num_class_embeds=5)
    model.save_pretrained(tmp_path / "m")
    scheduler.save_pretrained(tmp_path / "m")
    result = elbo("import", "m", "run", "--classes", 4, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = elbocli.open_run(tmp_path / "run", "cpu")
    wanted = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}[scheduler.config.prediction_type]
    assert (run.settings.prediction, run.settings.label_dropout) == (wanted, 0.1)
    abar = (1 - scheduler.betas.double()).cumprod(
        0
    )  # its own alphas_cumprod are float32, and 1 - abar of them is nothing
    logsnr = (abar / (1 - abar)).log()
    assert run.settings.logsnr_max == pytest.approx(float(logsnr[0]), abs=1e-4)
    assert run.settings.logsnr_min == pytest.approx(float(logsnr[-1]), abs=1e-3)
    steps = torch.arange(len(abar))
    z = torch.randn(len(abar), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = steps % 6 - 1
    theirs = model(z, steps, labels.where(labels >= 0, 4)).sample
    ours = run.network(z, logsnr.float(), labels)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_a_flow_network_sees_the_straight_path(elbo: Elbo, tmp_path: Path) -> None:
    model = awake(out_channels=2)
    model.save_pretrained(tmp_path / "m")
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_pretrained(tmp_path / "m")
    assert elbo("import", "m", "run", "--logsnr-min", -9, "--logsnr-max", 9, cwd=tmp_path).returncode == 0
    run = elbocli.open_run(tmp_path / "run", "cpu")
    assert run.settings.prediction == "u-path" and run.settings.weighting.startswith("u-mse@fm-ot:shift=-2.197")
    x, eps = torch.randn(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.1, 0.9, 5)
    with torch.no_grad():
        every = model((1 - t)[:, None, None, None] * x + t[:, None, None, None] * eps, 1000 * t).sample
        logsnr = 2 * ((1 - t) / t).log()
        c = run.prediction.coefficients(logsnr.double())
        z = (c.alpha[:, None, None, None] * x + c.sigma[:, None, None, None] * eps) * c.c_in[:, None, None, None]
        ours = run.network.outputs(z.float(), logsnr)
    assert float((ours - every).abs().max()) < 1e-5 * float(every.abs().max())
    schedule = run.schedule()  # t' = 3t/(1 + 2t) of even t, cut at both ends
    assert float(schedule.logsnr(torch.tensor([0.5], dtype=torch.float64))) == pytest.approx(-2 * np.log(3), abs=0.15)


@torch.no_grad()
def test_weights_of_before_2023_are_called_by_their_names_of_now(elbo: Elbo, flat: Path, tmp_path: Path) -> None:
    path = flat / WHOLE
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    names = {name: name for name in tensors}
    for now, before in old.items():
        names = {name: called.replace(f".{now}.", f".{before}.") for name, called in names.items()}
    assert sum(name != called for name, called in names.items()) == 4 * 2 * 4
    save_file({names[name]: value for name, value in tensors.items()}, path)
    changed(flat / "config.json", _diffusers_version="0.1.0", sample_shape=3)
    result = elbo("import", "flat", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    held = load_file(tmp_path / "run/checkpoints/step-00000000/model.safetensors")
    assert all(torch.equal(held[f"model.{name}"], value) for name, value in tensors.items())


def test_half_precision_becomes_whole(elbo: Elbo, flat: Path, tmp_path: Path) -> None:
    path = flat / WHOLE
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    result = elbo("import", "flat", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_it_is_trained_from_the_start_too(elbo: Elbo, pipeline: Path, digits: Path, tmp_path: Path) -> None:
    assert elbo("import", pipeline, "run", cwd=tmp_path).returncode == 0
    network = read_yaml(tmp_path / "run" / "config.yaml")["network"]
    section = {key: network[key] for key in ("family", "model", "code", "dropout")}
    train = {
        "steps": 6,
        "batch": 8,
        "logsnr_min": -10,
        "logsnr_max": 9,
        "log_every": 2,
        "save_every": 3,
        "preview_every": 0,
    }
    (tmp_path / "p.yaml").write_text(yaml_text({"network": section, "train": {**train, "prediction": "eps"}}))
    for steps in (3, 6):  # goes on
        words = ("train", digits, "-o", "new", "--preset", "p.yaml", "--activation-checkpointing", "--steps", steps)
        result = elbo(*words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert elbo("sample", "new", "-n", 2, "--steps", 2, "--guidance", 2, "-o", "s.npz", cwd=tmp_path).returncode == 0


def parts(folder: Path) -> Path:
    """Write the weights as diffusers does for large networks, in two parts."""
    tensors = load_file(folder / WHOLE)
    removed(folder, WHOLE)
    for number in (0, 1):
        half = {name: tensors[name] for name in list(tensors)[number::2]}
        save_file(half, folder / f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors")
    return folder


@pytest.mark.parametrize(
    "change", [parts, lambda f: (f / WHOLE).rename(f / "diffusion_pytorch_model.fp16.safetensors")]
)
def test_weights_in_parts_or_of_a_variant_are_read(
    change: Callable[[Path], Any], elbo: Elbo, flat: Path, tmp_path: Path
) -> None:
    tensors = load_file(flat / WHOLE)
    change(flat)
    result = elbo("import", "flat", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    held = load_file(tmp_path / "run/checkpoints/step-00000000/model.safetensors")
    assert all(torch.equal(held[f"model.{name}"], value) for name, value in tensors.items())


def removed(folder: Path, name: str) -> None:
    (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "said", "code", "told"),
    [
        (lambda f: changed(f / "config.json", _class_name="UNet2DConditionModel"), (), 1, "as a program"),
        (lambda f: (f / "config.json").write_text("{"), (), 1, "not usable JSON"),
        (lambda f: changed(f / "config.json", act_fn="__import__('os')"), (), 1, "diffusers can't make"),
        (lambda f: changed(f / "config.json", sample_size=[8, 4]), (), 1, "sample_size"),
        (lambda f: changed(f / "config.json", attn_norm_num_groups=-1), (), 1, "its network fails"),
        (lambda f: removed(parts(f), "diffusion_pytorch_model-00002-of-00002.safetensors"), (), 1, "lacks"),
        (lambda f: changed(f / "config.json", sample_size=None), (), 2, "add --size"),
        (lambda f: removed(f, "scheduler_config.json"), (), 2, "add --prediction and --levels"),
        (lambda f: changed(f / "scheduler_config.json", rescale_betas_zero_snr=True), (), 1, "no level code"),
        (lambda f: (f / WHOLE).rename(f / "diffusion_pytorch_model.bin"), (), 1, "only safetensors are read"),
        (lambda f: None, ("--classes", 3), 2, "its table has 0 classes"),
    ],
    ids=range(11),
)
def test_what_does_not_fit_is_said(
    change: Callable[[Path], None], said: tuple[Any, ...], code: int, told: str, elbo: Elbo, flat: Path, tmp_path: Path
) -> None:
    change(flat)
    result = elbo("import", "flat", "run", *said, cwd=tmp_path)
    assert (result.returncode, [each.name for each in tmp_path.iterdir()]) == (code, ["flat"]), result.stderr
    assert told in result.stderr.decode() and b"Traceback" not in result.stderr, result.stderr


def test_what_no_scheduler_says_options_do(elbo: Elbo, flat: Path, tmp_path: Path) -> None:
    removed(flat, "scheduler_config.json")
    assert elbo("import", "flat", "run", "--prediction", "v", "--levels", "t:linear", cwd=tmp_path).returncode == 0
    run = elbocli.open_run(tmp_path / "run", "cpu")
    assert run.settings.prediction == "v" and run.settings.logsnr_min == pytest.approx(-10.118, abs=1e-3)
