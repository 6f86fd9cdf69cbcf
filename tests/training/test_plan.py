"""The plan of `elbo train --dry-run` is what really happens: memory and operations of a step, parts, devices, sums."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import UsageError
from elbocli.files.checkpoint import RunData
from elbocli.networks import build, place
from elbocli.networks.transformers import DiTConfig, UViTConfig
from elbocli.networks.unet import UNetConfig
from elbocli.runs import settings
from elbocli.runtime.processes import World
from elbocli.training import plan, state
from elbocli.training.batches import split
from elbocli.training.muon import Muon

UNET = UNetConfig(16, 3, 10, channels=32, levels=(1, 2), blocks=1, attention=(8,), dropout=0.1)
UVIT = UViTConfig(32, 3, 10, 16, (1, 2, 4), 1, 3, 2, 64, patching="dwt-1", dropout=0.1)
DIT = DiTConfig(32, 3, 10, width=64, depth=3, heads=2, patch=2, dropout=0.1)
PAIRS = UNetConfig(32, 3, 0, channels=32, levels=(1,), blocks=1, attention=(32,))
"""Attention between 1024 pixels, whose weights no fused kernel keeps."""
MINE = "digits-uvit"
BLOCKS = ("down", "transformer", "up")


def one_pass(network, config, batch):
    """Forward and backward over a micro-batch, as training makes it."""
    size = config.image_size
    x = torch.zeros(batch, config.image_channels, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.int64) if config.num_classes else None
    level = torch.zeros(batch, dtype=torch.float64)
    schedule = parse_schedule("uniform", -10, 10)
    objective = Objective(parse_weighting("elbo"), schedule, Prediction("v"))
    objective.losses(network, x, torch.zeros_like(x), labels, level).loss.mean().backward()


def measured_peak(config, batch, recompute):
    """Bytes that the allocator gave out and didn't get back at the worst moment, beyond weights and gradients."""
    network = place(build(config), torch.device("cpu"))
    network.recompute = recompute
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one_pass(network, config, batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        one_pass(network, config, batch)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert now == 0 and len(events) > 100
    return peak


@pytest.mark.parametrize("config", [UNET, UVIT, DIT, PAIRS], ids=["unet", "uvit", "dit", "pairs"])
@pytest.mark.long
def test_memory_and_operations_of_a_pass_are_about_what_was_planned(config):
    """In bf16 a CPU takes what its kernels need besides, so that plan is compared with the one in fp32."""
    batch = 8
    data = RunData("here", None, 100, config.image_size, 3, config.num_classes)
    for recompute in (False, True):
        options = {"preset": MINE, "precision": "fp32", "activation_checkpointing": recompute}
        planned = replace(settings.resolve(options, data), network=config)
        whole = plan.device_memory(planned, 1, batch, False)
        measured = measured_peak(config, batch, recompute)
        assert whole["copies"] == 0 and whole["activations"] == pytest.approx(measured, rel=0.35 if config is UNET else 0.25)
        planned = replace(settings.resolve({**options, "precision": "bf16"}, data), network=config)
        half = plan.device_memory(planned, 1, batch, False)
        assert half == whole | {"copies": whole["weights"] // 2, "activations": whole["activations"] // 2}
    size = config.image_size
    with torch.device("meta"):
        labels = torch.zeros(2, dtype=torch.int64) if config.num_classes else None
        inputs = torch.empty(2, 3, size, size), torch.empty(2), labels
        network = build(config)
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
    step = plan.measure_step(config, False)
    there = plan.measure_step(config, True)
    assert step.weights == sum(weight.numel() for weight in network.parameters())
    if config is UNET:  # norms on CUDA keep their input alone
        assert 0.6 * step.kept < there.kept < 0.8 * step.kept
    assert step.forward_flops == counter.get_total_flops() / 2 and 2.8 < step.flops / step.forward_flops < 3.2


# --- parts, per device ---


def plan_of(preset=MINE, devices=1, **options):
    return plan.plan(settings.resolve({"preset": preset, **options}, settings.preset_data(preset)), devices)


def test_sharding_divides_what_stays_and_gathers_what_passes():
    alone = plan_of(batch_size=64)
    spread = plan_of(batch_size=64, devices=4, parallel="fsdp")
    whole = alone["memory_MB"]
    parts = spread["memory_MB"]
    assert whole["weights"] == pytest.approx(4e-6 * alone["network"]["parameters"], abs=0.1)
    assert whole["optimizer"] == pytest.approx(2 * whole["weights"], abs=0.2)
    for key in ("weights", "gradients", "optimizer", "averages"):
        assert parts[key] == pytest.approx(whole[key] / 4, abs=0.1), key
    assert parts["activations"] < 0.3 * whole["activations"]
    assert plan_of(batch_size=64, devices=4)["memory_MB"]["weights"] == whole["weights"]  # ddp
    two = plan_of(batch_size=64, ema=("0.9", "0.99"))["memory_MB"]["averages"]
    assert two == pytest.approx(2 * whole["averages"], abs=0.2) and whole["averages"] == whole["weights"]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizer_keeps_as_many_bytes_as_planned(name):
    resolved = settings.resolve({"preset": MINE, "optimizer": name}, settings.preset_data(MINE))
    network = build(resolved.network)
    optimizer: Any = Muon(network, fused=True) if name == "muon" else torch.optim.AdamW(network.parameters(), fused=True)
    optimizer.grad_scale = torch.ones(())
    optimizer.found_inf = torch.zeros(())
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim()]
    muon = {key for key, weight in network.named_parameters() if "momentum_buffer" in optimizer.state[weight]}
    blocks = {key for key, weight in network.named_parameters() if key.split(".")[0] in BLOCKS and weight.dim() > 1}
    assert muon == (blocks if name == "muon" else set())
    assert sum(kept) == plan.device_memory(resolved, 1, 1, cuda=False)["optimizer"]


@pytest.mark.parametrize(("batch", "devices", "most"), [(60, 4, 4), (64, 4, 5), (17, 1, 16), (14, 2, 3), (14, 4, 0)])
def test_parts_are_those_of_training(batch, devices, most):
    planned = plan_of(batch_size=batch, devices=devices, micro_batch=most)
    parts = [split(World(rank, devices), batch, most or batch) for rank in range(devices)]
    assert {len(mine) for mine in parts} == {planned["micro_batches_per_step"]}
    assert max(len(part) for mine in parts for part in mine) == planned["micro_batch"]
    with pytest.raises(UsageError):
        plan_of(batch_size=batch, devices=batch + 1)


def test_parts_are_halved_until_the_plan_fits_the_smallest_card_in_tensors_below_the_limit(monkeypatch):
    resolved = settings.resolve({"preset": MINE, "parallel": "fsdp"}, settings.preset_data(MINE))
    monkeypatch.setattr(state, "card_bytes", {"cuda:1": 1 << 50}.get)
    for images, wanted in ((17, 16), (16, 16), (15, 8), (0, 1)):
        small = sum(plan.device_memory(resolved, 2, images, True).values()) / state.PLANNED
        world: Any = SimpleNamespace(size=2, device="cuda:1", all=lambda mine, small=small: [small, mine])
        assert state.planned_micro_batch(resolved, world, 64) == wanted
    monkeypatch.setattr(state, "MOST_ELEMENTS", 3 * plan.measure_step(resolved.network, cuda=True).largest)
    world.all = lambda mine: [mine]
    assert state.planned_micro_batch(resolved, world, 64) == 3


def test_the_numbers_of_a_plan_agree():
    planned = plan_of(batch_size=32, devices=2, steps=1000)
    parts = dict(planned["memory_MB"])
    assert parts.pop("total") == pytest.approx(sum(parts.values()), abs=0.5)
    compute = planned["compute"]
    assert compute["run_EFLOP"] * 1e9 == pytest.approx(compute["training_GFLOP_per_image"] * 32 * 1000, rel=1e-3)
    assert compute["step_TFLOP"] * 1e3 == pytest.approx(compute["training_GFLOP_per_image"] * 32, rel=1e-3)
    assert (planned["images"], planned["epochs"]) == (32000, round(32000 / 1797, 2))
    again = plan_of(batch_size=32, devices=2, activation_checkpointing=True)["compute"]["training_GFLOP_per_image"]
    assert again == pytest.approx(compute["training_GFLOP_per_image"] + compute["forward_GFLOP_per_image"], rel=1e-3)


# --- the command ---


def test_a_preset_is_planned_without_a_dataset_for_all_processes_by_the_first(elbo, tmp_path):
    words = "--preset digits-uvit --parallel fsdp --micro-batch 5 --batch-size 32 --precision bf16"
    for rank in ("0", "1"):
        workers = {"TORCHELASTIC_RUN_ID": "plan", "WORLD_SIZE": "2", "RANK": rank}
        done = elbo("train", "--dry-run", *words.split(), "--device", "cuda", cwd=tmp_path, env=workers)
        assert done.returncode == 0 and done.stderr == b"" and not [*tmp_path.iterdir()]
        if rank == "1":
            assert done.stdout == b""
            continue
        found = yaml.safe_load(done.stdout)
        assert found["data"] == "preset digits-uvit" and found["data_images"] == 1797
        keys = ("device", "devices", "parallel", "micro_batch", "micro_batches_per_step")
        assert [found[key] for key in keys] == ["cuda", 2, "fsdp", 4, 4]


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ("--preset digits --batch-size 4 --micro-batch 5", "micro-batch is 5"),
        ("--preset latents256 --flip", "--flip"),
    ],
)
def test_mistakes_are_told(words, word, elbo, tmp_path):
    done = elbo("train", "--dry-run", *words.split(), cwd=tmp_path)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"") and word in said, said
    assert "Traceback" not in said and not [*tmp_path.iterdir()]


def test_the_time_is_measured_on_this_device_or_said_to_be_unknown(elbo, digits, preset, tmp_path):
    def time_of(*words):
        done = elbo("train", digits, "-o", "run", "--preset", preset, "--dry-run", *words, cwd=tmp_path)
        assert done.returncode == 0 and not [*tmp_path.iterdir()], done.stderr
        return yaml.safe_load(done.stdout)["time"]

    measured = time_of("--steps", 1000)
    assert 0 < measured["step_s"] < 10
    assert measured["run_minutes"] == pytest.approx(measured["step_s"] * 1000 / 60, rel=0.02)
    for words in (("--device", "cuda"), ("--batch-size", 10**6)):
        assert time_of(*words).startswith("not measured: ")
