"""An update takes the batch, loss and gradient that are stated here, in however many parts; a step that isn't finite changes nothing."""

import math
from functools import partial
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from group import lines_of, poisoned
from harness import heard
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo import config as dynamo
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from elbocli.core.learning_rate import LR_DECAYS, learning_rate
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.networks import build
from elbocli.networks.transformers import UViTConfig
from elbocli.runs.examples import channels_first
from elbocli.runs.settings import resolve
from elbocli.runtime.processes import World
from elbocli.training import loop, muon, recorder
from elbocli.training.batches import Batches, count_parts, split
from elbocli.training.muon import Muon, orthogonalised
from elbocli.training.scores import TrainingScores
from elbocli.training.state import Parallel, TrainState
from elbocli.training.step import check, update
from elbocli.training.validation import Validation

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def fresh(digits, preset):
    """fresh(**options): a state whose network, unlike a new one, says something."""

    def make(**options):
        data = Dataset(digits)
        small = {"network.levels": [1], "network.attention": [], "network.dropout": 0.0}
        given = {"preset": str(preset), **small, "grad_clip": 0.0, **options}
        state = TrainState(resolve(given, data), data)
        torch.manual_seed(1)
        for piece in state.live.values():
            nn.init.normal_(piece, 0, 0.1)
        return state

    return make


@pytest.fixture
def batches(digits, preset):
    """batches(parts=…, **options): those of a run."""

    def make(parts=None, **options):
        return Batches(Dataset(digits), resolve({"preset": str(preset), **options}, Dataset(digits)), CPU, parts)

    return make


# --- loss and gradient ---


@pytest.mark.parametrize(
    "options", [{"micro_batch": 5}, {"grad_clip": 1e-3}, {"micro_batch": 8, "activation_checkpointing": True, "compile": True}]
)
def test_an_update_follows_the_gradient_of_the_mean_loss_in_parts_and_clipped(options, fresh, compiler):
    compiler("eager")
    state = fresh(**options)
    levels = state.objective.schedule.logsnr(state.batches.times(0))
    losses = []
    for part, mine in enumerate(state.batches.parts):
        x, eps, labels = state.batches.at(0, part)
        losses.append(state.objective.losses(state.network, x, eps, labels, levels[mine.start : mine.stop]).loss)
    wanted = torch.cat(losses).mean()
    gradients = torch.autograd.grad(wanted, [*state.network.parameters()])
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    shrunk = min(1.0, state.settings.grad_clip / float(norm)) if "grad_clip" in options else 1.0
    update(state)
    moments = [one["exp_avg"] for one in state.optimizer.state_dict()["state"].values()]
    assert (shrunk < 0.9) == ("grad_clip" in options)
    for gradient, moment in zip(gradients, moments, strict=True):
        torch.testing.assert_close(moment, 0.1 * shrunk * gradient, rtol=1e-4, atol=1e-8)
    sums, loss, found = state.interval()
    assert int(sums[0].sum()) == 16 and state.steps_done == 1 and state.images == 16
    assert (loss, found) == pytest.approx((float(wanted), float(norm)), rel=1e-5)
    sums, loss, _ = state.interval()
    assert float(sums.sum()) == 0 and math.isnan(loss)


def test_an_adaptive_schedule_moves_towards_weighting_times_error(fresh):
    state = fresh(schedule="adaptive", batch_size=64, grad_clip=1.0)
    edges = state.online.edges
    middle = 0.5 * (edges[1:] + edges[:-1])
    start = state.objective.schedule.density(middle)
    for step in range(60):
        update(state)
        if step % 5 == 4:
            state.interval()
    wanted = state.objective.weighting(middle) * state.online.errors.moments().smoothed.mean
    off = [
        float((density * edges.diff() - wanted / wanted.sum()).abs().sum() / 2)
        for density in (start, state.objective.schedule.density(middle))
    ]
    assert off[0] > 0.2 and off[1] < 0.02, off


def test_rates_are_logged_and_a_run_of_more_steps_follows_their_curve(digits, preset, tmp_path):
    data = Dataset(digits)
    options = {"preset": str(preset), "log_every": 1, "save_every": 99, "lr": 1.0}
    options["warmup_steps"] = 4
    loop.run(data, tmp_path / "plain", resolve({**options, "steps": 6}, data))
    assert [row["lr"] for row in lines_of(tmp_path / "plain" / "metrics.jsonl")] == [0.25, 0.5, 0.75, 1, 1, 1]
    decay = "cosine:final=.1"
    wanted = []
    for done, steps in ((0, 6), (6, 9)):
        loop.run(data, tmp_path / "run", resolve({**options, "lr": 1e-3, "lr_decay": decay, "steps": steps}, data))
        wanted += [learning_rate(step, steps, 1e-3, 4, LR_DECAYS.parse(decay)) for step in range(done, steps)]
    assert [row["lr"] for row in lines_of(tmp_path / "run" / "metrics.jsonl")] == wanted


# --- steps that aren't finite ---


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_nan_is_named_with_its_step_and_the_weights_are_those_before(micro_batch, fresh, monkeypatch):
    clean, sick = (fresh(micro_batch=micro_batch, **{"network.dropout": 0.1}) for _ in range(2))
    for _ in range(3):
        update(clean)
    monkeypatch.setattr(Batches, "at", Batches.at)
    poisoned(4, 5)
    for _ in range(6):
        update(sick)
    with pytest.raises(NonFiniteError) as caught:
        check(sick)
    assert caught.value.exit_code == 4
    assert "step 4: loss nan, " in str(caught.value)
    moments = clean.snapshot()[1]["optimizer"]["state"], sick.snapshot()[1]["optimizer"]["state"]
    for one, other in ((clean.live, sick.live), *((moments[0][index], moments[1][index]) for index in moments[0])):
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_half_precision_begins_at_the_scale_of_torch_and_does_not_halve_it_forever(fresh):
    state = fresh(precision="fp16")
    next(state.network.parameters()).register_hook(lambda gradient: gradient * math.nan)
    for _ in range(33):
        update(state)
    check(state)
    assert float(state.scale) == 2.0**-17
    update(state)
    with pytest.raises(NonFiniteError):
        check(state)


def test_half_precision_doubles_its_scale_after_2000_finite_steps(fresh):
    state = fresh(precision="fp16")
    one = torch.ones((), dtype=torch.float64)
    for _ in range(2000):
        before = float(state.scale)
        assert not state.should_skip(one, one)
    assert (before, float(state.scale), float(state.unbroken)) == (2.0**16, 2.0**17, 0)


# --- batches ---


def test_every_image_is_seen_once_an_epoch_in_another_order(batches):
    examples = batches(batch_size=64)
    seen = np.concatenate([examples.indices(step) for step in range(75)])
    assert all(sorted(seen[start : start + 300]) == list(range(300)) for start in range(0, 4800, 300))
    assert not np.array_equal(seen[:300], seen[300:600])


def test_pixels_labels_flips_and_dropped_labels_are_their_share(batches, digits):
    data = Dataset(digits)
    plain = batches(batch_size=256, label_dropout=0.0)
    changed = batches(batch_size=256, label_dropout=0.25, flip=True)
    dropped = []
    turned = []
    for step in range(8):
        (x, _, labels) = plain.at(step)
        (y, _, some) = changed.at(step)
        rows = plain.indices(step)
        wanted = data.read(rows).transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1
        np.testing.assert_allclose(x.numpy(), wanted, atol=1e-6)
        assert labels.tolist() == data.labels[rows].tolist() and torch.equal(some[some >= 0], labels[some >= 0])
        same = (x == y).flatten(1).all(1)
        assert bool((same | (x.flip(3) == y).flatten(1).all(1)).all()) and set(some[some < 0].tolist()) == {-1}
        dropped.append(float((some < 0).double().mean()))
        turned.append(float((~same).double().mean()))
    assert 0.2 < np.mean(dropped) < 0.3 and 0.4 < np.mean(turned) < 0.6


def test_parts_of_a_batch_are_the_batch_and_every_step_has_noise_of_its_own(batches):
    whole = batches(flip=True)
    parts = batches([range(5), range(5, 16)], flip=True)
    for one, *pieces in zip(whole.at(7), parts.at(7), parts.at(7, 1), strict=True):
        assert torch.equal(one, torch.cat(pieces))
    noise = torch.cat([whole.at(step)[1] for step in range(40)]).flatten(1)
    assert len(torch.unique(noise, dim=0)) == 640
    assert abs(float(noise.mean())) < 0.03 and float(noise.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        *(((2, 5, 4, 3), (0, 3, 1, 2)), ((2, 3, 5, 4), (0, 1, 2, 3))),
        *(((2, 1, 4, 3), (0, 3, 1, 2)), ((2, 1, 5, 4), (0, 1, 2, 3))),
    ],
)
def test_channels_are_found_first_or_last(shape, axes):
    pixels = torch.arange(math.prod(shape), dtype=torch.uint8).view(shape)
    assert torch.equal(channels_first(pixels), pixels.permute(axes))
    for wrong in (pixels.float(), pixels[0], torch.zeros(2, 2, 4, 4, dtype=torch.uint8)):
        with pytest.raises(UsageError):
            channels_first(wrong)


# --- parts that fit into memory ---


@given(batch=st.integers(1, 3000), processes=st.integers(1, 24), most=st.integers(1, 3000))
def test_a_batch_is_shared_in_as_few_parts_as_can_be_or_in_parts_of_one_size(batch, processes, most):
    share = math.ceil(batch / processes)
    worlds = [World(rank, processes) for rank in range(processes)]
    few = math.ceil(share / most)
    count = count_parts(batch, processes, most)
    even = [parts for parts in range(few, 2 * few) if share % parts == 0 and batch % processes == 0]
    assert count == (even[0] if even else few)
    if batch // processes < count:
        with pytest.raises(UsageError):
            split(worlds[0], batch, most)
        return
    parts = [split(world, batch, most) for world in worlds]
    assert [place for mine in parts for part in mine for place in part] == list(range(batch))
    assert {len(mine) for mine in parts} == {count}
    sizes = {len(part) for mine in parts for part in mine}
    assert max(sizes) <= most and max(sizes) - min(sizes) <= (0 if even else 1)


def test_threads_that_ask_for_different_epochs_at_once_get_their_own_orders(fresh, monkeypatch):
    """The thread that reads ahead asks while another one has begun to draw an order."""
    batches = fresh().batches
    wanted = fresh().batches
    count = len(batches.examples.rows) // batches.batch + 1
    at = Stream.at
    orders = []

    def interrupted(stream, index):
        generator = at(stream, index)
        if index == 0:
            other = Thread(target=lambda: orders.append(batches.indices(3 * count)))
            other.start()
            other.join()
        return generator

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "at", interrupted)
        orders.append(batches.indices(0))
    assert all(map(np.array_equal, orders, (wanted.indices(3 * count), wanted.indices(0))))


# --- the network compiled ---


@pytest.fixture
def compiler(monkeypatch):
    """compiler(backend): torch.compile finds graphs, and gives them to that."""

    def use(backend):
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))

    torch.compiler.reset()
    counters.clear()
    with dynamo.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield use
    torch.compiler.reset()


def test_units_are_all_compiled_however_many_kinds_there_are(compiler):
    class Unit(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = "x" * kind

        def forward(self, x):
            return x + len(self.kind)

    compiler("eager")
    units = [Unit(kind) for kind in range(12)]
    network = SimpleNamespace(units=lambda: units, recompute=False)
    Parallel.compile(SimpleNamespace(world=World(), network=network), 1)  # type: ignore[arg-type]
    for unit in units:
        unit(torch.zeros(2))
    assert counters["frames"]["ok"] == 12


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_compiles_its_network_once_for_training_and_once_for_validation(
    whole, compiler, digits, preset, tmp_path, monkeypatch
):
    """The only channel of grey images may have any stride; a small network on CUDA is compiled as a whole."""
    if whole:
        monkeypatch.setattr(Parallel, "compile", lambda spread, parts: spread.network.compile(dynamic=False))
    compiler("eager")
    data = Dataset(digits)
    graphs = []

    def count(owner, name):
        real = getattr(owner, name)

        def call(*words, **options):
            before = counters["stats"]["unique_graphs"]
            found = real(*words, **options)
            graphs.append((name, counters["stats"]["unique_graphs"] - before))
            return found

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((TrainState, "_compile"), (loop, "update"), (recorder, "preview"), (Validation, "partial")):
        count(owner, name)
    count(TrainingScores, "values")
    options = {"preset": str(preset), "compile": True, "steps": 2, "val_split": 20, "val_every": 1, "preview_every": 1}
    loop.run(data, tmp_path / "run", resolve({**options, "eval_every": 1, "eval_samples": 5}, data))
    assert {name for name, _ in graphs} == {"_compile", "update", "preview", "partial", "values"}
    (first, units), (_, validation) = (each for each in graphs if each[1])
    assert first == "_compile" and units == validation and (units == 1) == whole


def test_gradients_that_are_added_up_exchanged_or_recomputed_keep_out_of_cuda_graphs(monkeypatch):
    modes = []
    asked = set()
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: asked.add(how["mode"]))
    network = build(UViTConfig(8, 1, 0, 8, (1, 2), blocks=1, depth=1, heads=2, embedding=8))
    replica = Parallel(network, World(), "fp32", False)
    for device, processes, parts, recompute, small in (
        *((CUDA, 1, 1, False, 10**8), (CPU, 1, 1, False, 10**8), (CUDA, 1, 2, False, 10**8)),
        *((CUDA, 2, 1, False, 10**8), (CUDA, 1, 1, True, 10**8), (CUDA, 1, 1, False, 100)),
    ):
        replica.world = World(0, processes, device)
        replica.network.recompute = recompute
        monkeypatch.setattr("elbocli.training.state.SMALL", small)
        asked.clear()
        replica.compile(parts)
        modes += asked
    assert modes == ["reduce-overhead", *[None] * 5]


def test_a_network_whose_backward_pass_does_not_compile_trains_uncompiled(compiler, fresh):
    def fail(*_):
        raise RuntimeError("no such kernel")

    compiler(aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=fail))
    with heard() as lines:
        states = [fresh(compile=how) for how in (True, False)]
    for state in states:
        update(state)
    assert sum("no such kernel" in line and "--no-compile" in line for line in lines) == 1
    assert all(torch.equal(value, states[1].live[name]) for name, value in states[0].live.items())


def test_an_update_of_muon_has_a_root_mean_square_of_a_fifth_of_the_rate(fresh):
    """The update's size is that of docs/training.md for any shape and size of the gradient, once flattened."""
    network = fresh().network
    for weight in network.parameters():
        weight.grad = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer: Any = Muon(network, 0.01, weight_decay=0.0, fused=True)
    optimizer.grad_scale = torch.ones(())
    optimizer.found_inf = torch.zeros(())
    before = [weight.clone() for weight in optimizer.matrices]
    optimizer.step()
    moved = torch.stack([(weight - old).square().mean().sqrt() for weight, old in zip(optimizer.matrices, before, strict=True)])
    torch.testing.assert_close(moved, torch.full_like(moved, 0.2 * 0.01), rtol=0.25, atol=0)


def test_muon_updates_a_network_of_which_no_matrix_has_a_gradient(fresh):
    network = fresh().network
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight) if weight.dim() < 2 else None
    optimizer: Any = Muon(network, 0.01, weight_decay=0.0, fused=True)
    optimizer.grad_scale = torch.ones(())
    optimizer.found_inf = torch.zeros(())
    before = {weight: weight.clone() for weight in network.parameters()}
    optimizer.step()
    assert all(torch.equal(weight, old) == (weight.dim() > 1) for weight, old in before.items())


@pytest.mark.parametrize("fast", [True, False])
def test_muons_direction_is_newton_and_schulzs_polynomial_of_the_singular_values(fast, monkeypatch):
    """One call orthogonalises stacks of six shapes. fast: whether the CPU has AMX, so that the largest stack is in bfloat16."""
    monkeypatch.setattr(muon, "multiplies_bf16", lambda: fast)
    shapes = [(24, 24), (24, 40), (8, 40), (40, 8), (40, 24), (130, 140)]
    generator = torch.Generator().manual_seed(0)
    stacks = [torch.randn(count + 1, *shape, generator=generator) + 2 * torch.eye(*shape) for count, shape in enumerate(shapes)]
    results = dict(orthogonalised(stacks))
    assert len(results) == len(stacks)
    for index, matrices in enumerate(stacks):
        result = results[index]
        u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
        s = s / s.square().sum(1, keepdim=True).sqrt()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        assert bool((s[:, : s.shape[1] // 2] - 0.95).abs().max() < 0.3)
        rounded = torch.equal(result, result.bfloat16().float())
        assert rounded == (fast and len(matrices) == len(shapes))
        torch.testing.assert_close(result, ((u * s[:, None]) @ vh).float(), atol=2e-2 if rounded else 1e-4, rtol=0)
