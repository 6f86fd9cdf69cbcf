"""The magnitude-preserving U-Net: its sizes, magnitudes that stay, weights that are held, what it listens to."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from elbocli.errors import FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.nn.networks import build, config_of, count_parameters, section_of
from elbocli.nn.networks.edm2 import (
    EDM2,
    Attention,
    Block,
    EDM2Config,
    LevelAndClass,
    UnitLayer,
    blend,
    join,
    silu,
    unit,
)
from elbocli.run.open import open_initial
from elbocli.run.settings import resolve
from elbocli.train import loop
from elbocli.train.state import TrainState
from elbocli.train.step import update

SMALL = EDM2Config(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,))


def awake(config: EDM2Config = SMALL) -> EDM2:
    """A network whose gains are not zero."""
    torch.manual_seed(0)
    network = EDM2(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.5)
    return network


def inputs(batch: int = 4, size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 3, size, size, generator=draw)
    return z, torch.randn(batch, generator=draw) * 5, torch.arange(batch) % 5


def size_of(x: torch.Tensor) -> float:
    """Root mean square."""
    return float(x.detach().double().square().mean().sqrt())


@pytest.mark.parametrize(
    ("channels", "millions"), [(128, 124.7), (192, 280.2), (256, 497.8), (320, 777.5), (384, 1119.3), (448, 1523.2)]
)
def test_published_sizes_have_the_papers_parameters(channels, millions):
    """Table of the paper: 125, 280, 498, 777, 1119 and 1523 million, from XS to XXL."""
    with torch.device("meta"):
        network = build(EDM2Config(64, 4, 1000, channels, (1, 2, 3, 4), blocks=3, attention=(16, 8)))
    assert count_parameters(network) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_new_network_says_nothing_and_learns_to():
    network = EDM2(SMALL)
    out = network(*inputs())
    assert out.shape == (4, 3, 8, 8) and not out.any()
    out.sum().backward()
    assert network.gain.grad is not None and network.gain.grad.abs() > 0


# Magnitudes


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.0, 1.0), st.integers(0, 9))
def test_sums_and_joins_of_independent_values_keep_their_magnitude(one, other, share, seed):
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(1, count, 8, dtype=torch.float64, generator=draw) for count in (one, other))
    x, y = (each / each.square().mean().sqrt() for each in (x, y))
    assert size_of(join(x, y, share)) == pytest.approx(1, abs=1e-9)
    a = torch.linspace(-1, 1, 7, dtype=torch.float64)
    b = torch.tensor([1.0, -1, 1, 0, 1, -1, 1], dtype=torch.float64)  # at a right angle to a
    a, b = a / a.square().mean().sqrt(), b / b.square().mean().sqrt()
    assert float(a @ b) == pytest.approx(0, abs=1e-12)
    assert size_of(blend(a, b, share)) == pytest.approx(1, abs=1e-12)


def test_a_join_weighs_both_sides_by_their_share_whatever_their_channels():
    x, y = torch.ones(1, 10, 1, dtype=torch.float64), torch.ones(1, 40, 1, dtype=torch.float64)
    for share in (0.2, 0.5, 0.9):
        one, other = join(x, y, share).split([10, 40], 1)
        assert float(other.square().sum() / one.square().sum()) == pytest.approx((share / (1 - share)) ** 2)


def test_silu_keeps_the_magnitude_of_normal_values():
    at = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    assert size_of(silu(at)) == pytest.approx(1, abs=1e-3)


def test_unit_divides_by_the_root_mean_square_and_a_ten_thousandth():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(unit(x, 1), x / torch.tensor([[math.sqrt(12.5) + 1e-4], [1e-4]], dtype=torch.float64))
    assert unit(x.bfloat16(), 1).dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_a_layer_uses_its_weights_at_length_one_however_long_they_are(kernel):
    torch.manual_seed(0)
    layer = UnitLayer(6, 4, kernel).double()
    assert layer.weight.square().mean(tuple(range(1, layer.weight.dim()))).sqrt().tolist() == pytest.approx(
        [1] * 4, abs=2e-4
    )
    used = layer.effective()
    torch.testing.assert_close(used.flatten(1).norm(dim=1), torch.ones(4).double(), rtol=2e-4, atol=0)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([7.0, 0.5, 30, 2]).double().view(-1, *[1] * (layer.weight.dim() - 1)))
    torch.testing.assert_close(layer.effective(), used, rtol=3e-4, atol=0)
    torch.testing.assert_close(layer.effective(torch.tensor([0.3]).double()), 0.3 * layer.effective())


def test_a_new_network_keeps_unit_magnitude_through_all_its_blocks():
    """Their gains of zero leave noise levels and classes out, and the convolutions' edges lose a little."""
    torch.manual_seed(3)
    config = EDM2Config(32, 4, 10, channels=64, levels=(1, 2, 2), blocks=2, attention=(16, 8))
    network, seen = EDM2(config).eval(), {}
    for name, module in network.named_modules():
        if isinstance(module, Block | LevelAndClass) or name == "first":
            module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, size_of(out)))
    with torch.no_grad():
        network.gain.fill_(1)
        out = network(torch.randn(2, 4, 32, 32), torch.tensor([-6.0, 8.0]), torch.tensor([1, 7]))
    assert len(seen) == 2 + 8 + 2 + 11
    assert all(0.8 < size < 1.2 for size in seen.values()), seen
    assert 0.8 < size_of(out) < 1.2


def test_queries_keys_and_values_have_unit_magnitude_in_each_head():
    torch.manual_seed(0)
    layer = Attention(192).double()
    assert layer.heads == 3
    x = torch.randn(2, 192, 3, 5, dtype=torch.float64) * 4
    q, k, v = (each.view(2, 3, 64, 15) for each in layer.qkv(x).chunk(3, 1))
    q, k, v = (each / (each.square().mean(2, keepdim=True).sqrt() + 1e-4) for each in (q, k, v))
    mix = torch.softmax(torch.einsum("bhci,bhcj->bhij", q, k) / 8, -1)
    y = layer.out(torch.einsum("bhij,bhcj->bhci", mix, v).reshape(2, 192, 3, 5))
    torch.testing.assert_close(layer(x), (0.7 * x + 0.3 * y) / math.sqrt(0.58))


def test_activations_are_clipped_where_a_block_ends():
    torch.manual_seed(0)
    block = Block(16, 0.0, 8, 8, down=False, attention=False, resample="")
    out = block(torch.randn(2, 8, 4, 4) * 1000, torch.randn(2, 16))
    assert out.abs().max() == 256


# Weights that are held


@pytest.fixture
def preset(tmp_path):
    """A small network as EDM2's are trained."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "network: {family: edm2, channels: 16, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.0}\n"
        "train: {prediction: 'edm:sigma_data=0.5', weighting: 'edm:mean=-0.4,std=1.0', "
        "schedule: 'edm:mean=-0.4,std=1.0', logsnr_min: -8, logsnr_max: 12, batch: 32, lr: 1.0e-2, warmup: 5, "
        "ema: 'power:std=0.1', label_dropout: 0.1, beta2: 0.99, clip: 0}\n"
    )
    return str(path)


@pytest.fixture
def state(digits, preset):
    """A function that makes a small network in training."""
    data = Dataset(digits)
    return lambda **options: TrainState(resolve({"preset": preset, **options}, data), data)


def sizes(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Root mean square of every output's weights, of all layers."""
    rows = [each.flatten(1).square().mean(1).sqrt() for each in weights.values() if each.dim() > 1]
    return torch.cat(rows)


def test_updates_leave_weights_at_unit_magnitude_and_the_average_sees_them_before(state, monkeypatch):
    run = state()
    fixed = {name: run.live[name].clone() for name in ("conditioning.frequencies", "conditioning.phases")}
    assert sizes(run.live).sub(1).abs().max() < 2e-4
    before, constrain = {}, run.network.constrain

    def seen(weights, left_out):
        before.update({name: value.clone() for name, value in weights.items()})
        constrain(weights, left_out)

    monkeypatch.setattr(run.network, "constrain", seen)
    for _ in range(3):
        update(run)
        assert sizes(run.live).sub(1).abs().max() < 2e-4
        if run.steps_done == 1:  # the average is of this update alone
            assert all(torch.equal(before[name], value) for name, value in next(iter(run.ema.values())).items())
    assert sizes(before).sub(1).abs().max() > 5e-4
    for name, value in fixed.items():
        assert torch.equal(value, run.live[name]) and torch.equal(value, next(iter(run.ema.values()))[name])


def test_an_update_that_is_left_out_changes_no_bit(state):
    run = state()
    update(run)
    before = {name: value.clone() for name, value in run.live.items()}
    run.network.constrain(run.live, torch.tensor(True))
    assert all(torch.equal(before[name], value) for name, value in run.live.items())
    run.live["first.weight"].detach().mul_(3)
    run.network.constrain(run.live, torch.tensor(False))
    torch.testing.assert_close(run.live["first.weight"], before["first.weight"], rtol=2e-4, atol=0)


def test_parts_of_a_weight_are_held_as_the_whole_is():
    """Where weights are sharded, along the first dimension, a process has some outputs whole, or none."""
    network = awake()
    whole = {name: 2 * value.detach().clone() for name, value in network.named_parameters()}
    parts = [{name: value[at].clone() for name, value in whole.items()} for at in (slice(0, 3), slice(3, None))]
    for each in (whole, *parts):
        network.constrain(each, torch.tensor(False))
    for name, value in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value), name


def test_it_learns_digits_in_a_few_dozen_updates(state):
    run = state()
    losses = []
    for _ in range(60):
        update(run)
        losses.append(float(run.totals[0]))
    first, last = losses[9], losses[-1] - losses[-11]
    assert last < 0.6 * first, (first, last)


def test_a_run_in_pieces_ends_with_the_same_bits_and_its_checkpoint_has_the_frequencies(digits, preset, tmp_path):
    options = {
        "preset": preset,
        "save_every": 2,
        "activation_checkpointing": True,
        "micro_batch": 8,
        "preview_every": 0,
    }
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        loop.run(Dataset(digits), tmp_path / name, resolve({**options, "steps": steps}, Dataset(digits)))
    for file in ("model", "ema-power-0.1"):
        whole, parts = (
            tmp_path / each / "checkpoints" / "step-00000004" / f"{file}.safetensors" for each in ("whole", "parts")
        )
        assert whole.read_bytes() == parts.read_bytes()
        assert {"conditioning.frequencies", "conditioning.phases"} <= set(load_file(whole))


def test_a_run_begun_from_another_has_its_frequencies_and_weights_of_unit_magnitude(digits, preset, tmp_path):
    """Whose seed draws others. Averages begin as they were, which the network uses alike."""
    data, options = Dataset(digits), {"preset": preset, "preview_every": 0}
    loop.run(data, tmp_path / "first", resolve({**options, "steps": 3, "save_every": 3}, data))
    source = open_initial(tmp_path / "first")
    run = TrainState(resolve({"seed": 5}, data, initial=source), data)
    drawn = run.live["conditioning.frequencies"].clone()
    run.begin(source.weights(run.resolved.network, run.resolved.data))
    had = load_file(source.checkpoint.path / "ema-power-0.1.safetensors")
    for name in ("conditioning.frequencies", "conditioning.phases"):
        assert torch.equal(run.live[name], had[name]) and torch.equal(next(iter(run.ema.values()))[name], had[name])
    assert not torch.equal(drawn, had["conditioning.frequencies"])
    assert all(torch.equal(value, had[name]) for name, value in next(iter(run.ema.values())).items())
    assert sizes(run.live).sub(1).abs().max() < 2e-4 < sizes(next(iter(run.ema.values()))).sub(1).abs().max()


# What it listens to


def test_level_and_class_matter_and_no_class_is_minus_one():
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        out = network(z, logsnr, labels)
        assert not torch.allclose(out, network(z, logsnr + 0.1, labels))
        assert not torch.allclose(out, network(z, logsnr, (labels + 1) % 5))
        assert torch.equal(network(z, logsnr, torch.full_like(labels, -1)), network(z, logsnr, None))
        assert not torch.allclose(network(z, logsnr, None), network(z, logsnr, torch.zeros_like(labels)))


def test_the_code_of_the_level_is_the_configs():
    network = awake()
    other = EDM2(replace(SMALL, code="logsnr:factor=0.25")).eval()
    other.load_state_dict(network.state_dict())
    z, logsnr, labels = inputs()
    with torch.no_grad():
        torch.testing.assert_close(other(z, -0.5 * logsnr, labels), network(z, logsnr, labels))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_neighbouring_levels_are_told_apart_in_bf16(weights):
    """Sharded weights are in bf16 themselves; frequencies, which are buffers, are not."""
    torch.manual_seed(0)
    layer = LevelAndClass(SMALL.code, 64, 32, 3)
    level, labels = torch.tensor([14.0, 14.01]), torch.tensor([0, 0])
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(weights)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = layer(level, labels)
        exact = layer.double()(level.double(), labels)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    assert out.dtype == torch.float32


def test_frequencies_are_in_the_checkpoint_and_not_trained():
    network = EDM2(SMALL)
    assert {"conditioning.frequencies", "conditioning.phases"} <= set(network.state_dict())
    assert not any("frequencies" in name or "phases" in name for name, _ in network.named_parameters())


def test_examples_of_a_batch_do_not_mix():
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        alone = network(z[2:3], logsnr[2:3], labels[2:3])
        torch.testing.assert_close(network(z, logsnr, labels)[2:3], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"num_classes": 0}, {"levels": (2,)}, {"blocks": 2}], ids=str)
def test_a_gradient_reaches_every_parameter(change):
    network = awake(replace(SMALL, **change))
    network(*inputs(5)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 1}, "halves the image 1 times, too often for 1 pixels"),
        ({"channels": 6}, "channels"),
        ({"levels": ()}, "levels"),
        ({"levels": (0.5, 1)}, "whole multiples"),
        ({"blocks": 0}, "blocks"),
        ({"dropout": 1.0}, "dropout"),
        ({"code": "seconds"}, "code 'seconds': no level code is called 'seconds'"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises((FormatError, UsageError)) as caught:
        config_of({**section_of(SMALL), **change}, "here")
    assert said in str(caught.value)
