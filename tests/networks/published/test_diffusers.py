"""`elbo import FOLDER` of diffusers: the function at every timestep is diffusers' own, and folders that don't fit are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from calls import trains
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file

import elbocli

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
    folder = Path(shutil.copytree(pipeline / "unet", tmp_path / "flat"))
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", folder)
    return folder


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_pipeline_is_sampled_bounded_and_trained_further(elbo, pipeline, digits, tmp_path):
    result = elbo("import", pipeline, "run", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    assert json.loads(elbo("bound", "run", digits, "-n", 8, "--draws", 2, cwd=tmp_path).stdout)["bpd"] > 0
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
def test_the_function_at_every_timestep_is_diffusers_own(scheduler, elbo, tmp_path):
    model = awake(num_class_embeds=5)
    model.save_pretrained(tmp_path / "m")
    scheduler.save_pretrained(tmp_path / "m")
    result = elbo("import", "m", "run", "--num-classes", 4, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = elbocli.open_run(tmp_path / "run", "cpu")
    wanted = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}[scheduler.config.prediction_type]
    assert (run.settings.prediction, run.settings.label_dropout) == (wanted, 0.1)
    abar = (1 - scheduler.betas.double()).cumprod(0)  # alphas_cumprod are float32, and 1 - abar of them is nothing
    logsnr = (abar / (1 - abar)).log()
    ends = run.settings.logsnr_max, run.settings.logsnr_min
    assert ends == pytest.approx((float(logsnr[0]), float(logsnr[-1])), abs=1e-3)
    steps = torch.arange(len(abar))
    z = torch.randn(len(abar), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = steps % 6 - 1
    theirs = model(z, steps, labels.where(labels >= 0, 4)).sample
    assert float((run.network(z, logsnr.float(), labels) - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


@torch.no_grad()
def test_a_flow_network_sees_the_straight_path(elbo, tmp_path):
    model = awake(out_channels=2)
    model.save_pretrained(tmp_path / "m")
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_pretrained(tmp_path / "m")
    assert elbo("import", "m", "run", "--logsnr-min", -9, "--logsnr-max", 9, cwd=tmp_path).returncode == 0
    run = elbocli.open_run(tmp_path / "run", "cpu")
    assert run.settings.prediction == "u-path" and run.settings.weighting.startswith("u-mse@fm-ot:shift=-2.197")
    x, eps = torch.randn(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.1, 0.9, 5)
    noise = t[:, None, None, None]
    theirs = model((1 - noise) * x + noise * eps, 1000 * t).sample
    logsnr = 2 * ((1 - t) / t).log()
    c = run.prediction.coefficients(logsnr.double())
    alpha, sigma, c_in = (each[:, None, None, None] for each in (c.alpha, c.sigma, c.c_in))
    ours = run.network.outputs(((alpha * x + sigma * eps) * c_in).float(), logsnr)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    # t' = 3t/(1 + 2t) of even t, cut at both ends
    assert float(run.schedule().logsnr(torch.tensor([0.5]).double())) == pytest.approx(-2 * np.log(3), abs=0.15)


def renamed(folder: Path) -> None:
    """Modules of attention as they were called before 2023."""
    tensors = load_file(folder / WHOLE)
    for now, before in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {name.replace(f".{now}.", f".{before}."): value for name, value in tensors.items()}
    assert sum("query" in name for name in tensors) > 2
    save_file(tensors, folder / WHOLE)
    changed(folder / "config.json", _diffusers_version="0.1.0", sample_shape=3)


def parts(folder: Path) -> None:
    """The weights in two files, as diffusers writes those of large networks."""
    tensors = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    for number in (0, 1):
        half = {name: tensors[name] for name in list(tensors)[number::2]}
        save_file(half, folder / f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors")


def halves(folder: Path) -> None:
    tensors = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    save_file({name: value.half() for name, value in tensors.items()}, folder / WHOLE.replace(".safe", ".fp16.safe"))


@pytest.mark.parametrize("change", [renamed, parts, halves])
def test_weights_under_old_names_in_parts_and_of_half_precision_are_read(change, elbo, flat, tmp_path):
    tensors = load_file(flat / WHOLE)
    change(flat)
    result = elbo("import", "flat", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    held = load_file(tmp_path / "run/checkpoints/step-00000000/model.safetensors")
    for name, value in tensors.items():
        assert torch.equal(held[f"model.{name}"], value.half().float() if change is halves else value)


def test_options_say_what_no_scheduler_does(elbo, flat, tmp_path):
    (flat / "scheduler_config.json").unlink()
    assert elbo("import", "flat", "run", "--prediction", "v", "--noise-input", "t:linear", cwd=tmp_path).returncode == 0
    settings = elbocli.open_run(tmp_path / "run", "cpu").settings
    assert settings.prediction == "v" and settings.logsnr_min == pytest.approx(-10.118, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said", "code", "word"),
    [
        (lambda f: changed(f / "config.json", _class_name="UNet2DConditionModel"), (), 1, "--network"),
        (lambda f: (f / "config.json").write_text("{"), (), 1, "JSON"),
        (lambda f: changed(f / "config.json", act_fn="__import__('os')"), (), 1, "diffusers can't make"),
        (lambda f: changed(f / "config.json", sample_size=[8, 4]), (), 1, "sample_size"),
        (lambda f: changed(f / "config.json", sample_size=None), (), 2, "--size"),
        (lambda f: (f / "scheduler_config.json").unlink(), (), 2, "--noise-input"),
        (lambda f: changed(f / "scheduler_config.json", rescale_betas_zero_snr=True), (), 1, "level code"),
        (lambda f: changed(f / "scheduler_config.json", beta_start=None), (), 1, "--noise-input"),
        (lambda f: (f / WHOLE).rename(f / "diffusion_pytorch_model.bin"), (), 1, "safetensors"),
        (lambda f: None, ("--num-classes", 3), 2, "has 0"),
    ],
    ids=range(10),
)
def test_a_folder_that_does_not_fit_is_refused(change, said, code, word, elbo, flat, tmp_path):
    change(flat)
    result = elbo("import", "flat", "run", *said, cwd=tmp_path)
    assert (result.returncode, [path.name for path in tmp_path.iterdir()]) == (code, ["flat"]), result.stderr
    assert word in result.stderr.decode() and b"Traceback" not in result.stderr, result.stderr
