"""A plan against what really happens: memory and operations of a step, and what the parts add up to."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from elbocli.core.loss import denoising_losses
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import UsageError
from elbocli.files.checkpoint import RunData
from elbocli.nn.networks import build, place
from elbocli.nn.networks.transformers import DiTConfig, UViTConfig
from elbocli.nn.networks.unet import UNetConfig
from elbocli.nn.presets import NAMES
from elbocli.run import settings
from elbocli.runtime.device import Precision
from elbocli.runtime.processes import World
from elbocli.train import plan
from elbocli.train.state import split

UNET = UNetConfig(16, 3, 10, channels=32, levels=(1, 2), blocks=1, attention=(8,), dropout=0.1)
UVIT = UViTConfig(32, 3, 10, 16, (1, 2, 4), 1, 3, 2, 64, patching="dwt-1", dropout=0.1)
DIT = DiTConfig(32, 3, 10, width=64, depth=3, heads=2, patch=2, dropout=0.1)
PAIRS = UNetConfig(32, 3, 0, channels=32, levels=(1,), blocks=1, attention=(32,))
"""Attention between 1024 pixels, whose weights no fused kernel keeps."""
MINE = "digits-uvit"


def one_pass(network, config, batch, precision):
    """Forward and backward over a micro-batch, as training makes it."""
    size = config.image_size
    x = torch.zeros(batch, config.image_channels, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64) if config.num_classes else None
    level, schedule = torch.zeros(batch, dtype=torch.float64), parse_schedule("uniform", -10, 10)
    how = level, parse_weighting("elbo"), schedule, Prediction("v")
    with Precision(precision, torch.device("cpu")).autocast():
        loss = denoising_losses(network, x, torch.zeros_like(x), labels, *how).loss
    loss.mean().backward()


def measured_peak(config, batch, precision, recompute):
    """Bytes that the allocator gave out and didn't get back at the worst moment, beyond weights and gradients."""
    network = place(build(config), torch.device("cpu"))
    network.recompute = recompute
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one_pass(network, config, batch, precision)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        one_pass(network, config, batch, precision)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert now == 0 and len(events) > 100
    return peak


# --- a step ---


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [UNET, UVIT, DIT, PAIRS], ids=["unet", "uvit", "dit", "pairs"])
def test_the_memory_of_a_pass_is_about_what_was_planned(config, precision, recompute):
    data = RunData("here", None, 100, config.image_size, 3, config.num_classes)
    resolved = replace(
        settings.resolve({"preset": MINE, "precision": precision, "activation_checkpointing": recompute}, data),
        network=config,
    )
    parts = plan.device_memory(resolved, 1, 24, False)
    planned, measured = parts["copies"] + parts["activations"], measured_peak(config, 24, precision, recompute)
    assert planned == pytest.approx(measured, rel=0.35 if config is UNET else 0.25)


def test_norms_on_cuda_keep_their_input_alone():
    here, there = (plan.measure_step(UNET, cuda).kept for cuda in (False, True))
    assert 0.6 * here < there < 0.8 * here


@pytest.mark.parametrize("config", [UNET, UVIT, DIT], ids=["unet", "uvit", "dit"])
def test_operations_are_those_that_torch_counts(config):
    size = config.image_size
    with torch.device("meta"):
        network = build(config)
        inputs = torch.empty(2, 3, size, size), torch.empty(2), torch.zeros(2, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
    step = plan.measure_step(config, False)
    assert step.forward_flops == counter.get_total_flops() / 2
    assert 2.8 < step.flops / step.forward_flops < 3.2


# --- parts, per device ---


def plan_of(preset=MINE, devices=1, **options):
    resolved = settings.resolve({"preset": preset, **options}, settings.preset_data(preset))
    return plan.plan(resolved, devices)


def test_sharding_divides_what_stays_and_gathers_what_passes():
    alone, spread = plan_of(batch=64), plan_of(batch=64, devices=4, parallel="fsdp")
    whole, parts = alone["memory_MB"], spread["memory_MB"]
    assert whole["weights"] == pytest.approx(4e-6 * alone["network"]["parameters"], abs=0.1)
    assert whole["optimizer"] == pytest.approx(2 * whole["weights"], abs=0.2)
    for key in ("weights", "gradients", "optimizer", "averages"):
        assert parts[key] == pytest.approx(whole[key] / 4, abs=0.1), key
    assert parts["activations"] < 0.3 * whole["activations"]
    assert plan_of(batch=64, devices=4)["memory_MB"]["weights"] == whole["weights"]  # ddp


@pytest.mark.parametrize(("batch", "devices", "most"), [(60, 4, 4), (64, 4, 5), (17, 1, 16), (14, 2, 3), (14, 4, 0)])
def test_parts_are_those_of_training(batch, devices, most):
    planned = plan_of(batch=batch, devices=devices, micro_batch=most)
    parts = [split(World(rank, devices), batch, most or batch) for rank in range(devices)]
    assert {len(mine) for mine in parts} == {planned["micro_batches_per_step"]}
    assert max(len(part) for mine in parts for part in mine) == planned["micro_batch"]


def test_averages_are_planned_for():
    one, two = (plan_of("small64", batch=64, ema=ema)["memory_MB"] for ema in (("0.99",), ("0.99", "0.999")))
    assert two["averages"] == pytest.approx(2 * one["averages"], abs=0.2) and one["averages"] == one["weights"]


def test_more_devices_than_images_are_refused():
    with pytest.raises(UsageError, match="a batch of 4 images can't be shared by 5"):
        plan_of(batch=4, devices=5)


def test_the_whole_plan_is_plain_and_its_numbers_agree():
    resolved = settings.resolve({"preset": MINE, "batch": 32}, settings.preset_data(MINE))
    result = plan.plan(resolved, devices=2)
    assert yaml.safe_load(yaml.safe_dump(result)) == result
    parts = dict(result["memory_MB"])
    assert parts.pop("total") == pytest.approx(sum(parts.values()), abs=0.5)
    compute = result["compute"]
    run = compute["training_GFLOP_per_image"] * 1e9 * 32 * resolved.settings.steps
    assert compute["run_EFLOP"] * 1e18 == pytest.approx(run, rel=1e-3)


# --- without a dataset ---


def test_latents_are_planned_without_an_autoencoder():
    data = settings.preset_data("latents256")
    assert data.latents and data.channels == 4
    assert settings.resolve({"preset": "latents256"}, data).network.image_channels == 4
    with pytest.raises(UsageError, match="--flip: preset latents256 holds latents"):
        settings.resolve({"preset": "latents256", "flip": True}, data)


# --- presets ---


@pytest.mark.parametrize("name", ["imagenet128", "imagenet256", "imagenet512"])
def test_the_papers_networks_have_two_billion_parameters(name):
    data = settings.preset_data(name)
    network = settings.resolve({"preset": name}, data).network
    assert plan.measure_step(network, True).weights == pytest.approx(2e9, rel=0.1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != MINE)) for name in NAMES])
def test_a_preset_is_planned_in_a_minute_and_4_gb(name, tmp_path):
    line = [sys.executable, "-m", "elbocli", "train", "--preset", name, "--dry-run"]
    start = time.monotonic()
    with open(tmp_path / "plan.yaml", "wb") as out:
        child = subprocess.Popen(line, cwd=tmp_path, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds, peak = time.monotonic() - start, usage.ru_maxrss * 1024
    planned = yaml.safe_load((tmp_path / "plan.yaml").read_bytes())
    print(f"{name}: {planned['network']['parameters']:,} parameters, {seconds:.1f} s, {peak / 1e6:.0f} MB")
    assert status == 0 and seconds < 60 and peak < 4e9
    assert planned["data"] == f"preset {name}"
