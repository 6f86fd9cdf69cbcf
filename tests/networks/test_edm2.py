"""The magnitude-preserving U-Net keeps magnitudes, and holds its weights to them in training; `elbo import` tests its formula."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from elbocli.files.dataset import Dataset
from elbocli.networks.edm2 import EDM2, Block, EDM2Config, LevelAndClass, UnitLayer, blend, join
from elbocli.runs.open import open_initial
from elbocli.runs.settings import resolve
from elbocli.training import loop
from elbocli.training.state import TrainState
from elbocli.training.step import update

FIXED = ("conditioning.frequencies", "conditioning.phases")


def size_of(x: Tensor) -> float:
    """Root mean square."""
    return float(x.detach().double().square().mean().sqrt())


# Magnitudes


def test_a_new_network_keeps_unit_magnitude_through_all_its_blocks():
    """Their gains of zero leave noise levels and classes out, and the convolutions' edges lose a little."""
    torch.manual_seed(3)
    config = EDM2Config(32, 4, 10, channels=64, levels=(1, 2, 2), blocks=2, attention=(16, 8))
    network = EDM2(config).eval()
    seen = dict[str, float]()
    for name, module in network.named_modules():
        if isinstance(module, Block | LevelAndClass) or name == "first":
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: size_of(out)}))
    with torch.no_grad():
        network.gain.fill_(1)
        out = network(torch.randn(2, 4, 32, 32), torch.tensor([-6.0, 8.0]), torch.tensor([1, 7]))
    assert len(seen) == 2 + 8 + 2 + 11
    assert all(0.8 < size < 1.2 for size in (*seen.values(), size_of(out))), seen


def test_sums_keep_the_magnitude_and_joined_parts_are_in_the_ratio_of_their_shares():
    x, y = torch.randn(2, 1, 300, 50, 50, generator=torch.Generator().manual_seed(0))
    assert size_of(blend(x, y, 0.3)) == pytest.approx(1, rel=0.01)
    joined = join(x, y[:, :100], 0.3)
    assert size_of(joined) == pytest.approx(1, rel=0.01)
    assert float(joined[:, 300:].norm() / joined[:, :300].norm()) == pytest.approx(3 / 7, rel=0.01)


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_a_layer_uses_its_weights_at_length_one_however_long_they_are(kernel):
    torch.manual_seed(0)
    layer = UnitLayer(6, 4, kernel).double()
    assert sizes({"": layer.weight}).tolist() == pytest.approx([1 - 1e-4] * 4, abs=8e-5)
    used = layer.effective()
    torch.testing.assert_close(used.flatten(1).norm(dim=1), torch.ones(4).double(), rtol=2e-4, atol=0)
    with torch.no_grad():
        layer.weight.flatten(1).mul_(torch.tensor([[7.0], [0.5], [30], [2]]))
    torch.testing.assert_close(layer.effective(), used, rtol=3e-4, atol=0)
    torch.testing.assert_close(layer.effective(0.3), 0.3 * layer.effective())


def test_activations_are_clipped_where_a_block_ends():
    torch.manual_seed(0)
    block = Block(16, 0.0, 8, 8, down=False, attention=False, resample="")
    assert block(torch.randn(2, 8, 4, 4) * 1000, torch.randn(2, 16)).abs().max() == 256


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_neighbouring_levels_are_told_apart_in_bf16(weights):
    """Sharded weights are in bf16 themselves; frequencies, which are buffers, are not. They are spread over many turns."""
    torch.manual_seed(0)
    layer = LevelAndClass("logsnr:factor=-0.125", 64, 32, 3)
    assert 4 < float(layer.frequencies.std()) < 9 and float(layer.phases.std()) == pytest.approx(1.8, abs=0.3)
    level = torch.tensor([14.0, 14.01])
    labels = torch.tensor([0, 0])
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(weights)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = layer(level, labels)
        exact = layer.double()(level.double(), labels)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    assert out.dtype == torch.float32


# Weights that are held


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Settings of a small network as EDM2's are trained."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "network: {family: edm2, channels: 16, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.0}\n"
        "train: {prediction: 'edm:sigma_data=0.5', weighting: 'edm:mean=-0.4,std=1.0', "
        "schedule: 'edm:mean=-0.4,std=1.0', logsnr_min: -8, logsnr_max: 12, batch_size: 32, lr: 1.0e-2, warmup_steps: 5, "
        "ema: 'power:std=0.1', label_dropout: 0.1, beta2: 0.99, grad_clip: 0}\n"
    )
    return {"preset": str(path), "preview_every": 0}


@pytest.fixture
def state(digits: Path, options: dict[str, Any]) -> TrainState:
    """That network in training."""
    data = Dataset(digits)
    return TrainState(resolve(options, data), data)


def sizes(weights: dict[str, Tensor]) -> Tensor:
    """Root mean square of every output's weights, of all layers."""
    return torch.cat([each.detach().flatten(1).square().mean(1).sqrt() for each in weights.values() if each.dim() > 1])


def average_of(run: TrainState) -> dict[str, Tensor]:
    return next(iter(run.ema.values()))


def test_updates_leave_weights_at_unit_magnitude_and_the_average_sees_them_before(state, monkeypatch):
    fixed = {name: state.live[name].clone() for name in FIXED}
    before = dict[str, Tensor]()
    constrain = state.network.constrain

    def seen(weights: dict[str, Tensor], left_out: Tensor) -> None:
        before.update({name: value.clone() for name, value in weights.items()})
        constrain(weights, left_out)

    monkeypatch.setattr(state.network, "constrain", seen)
    assert sizes(state.live).sub(1).abs().max() < 2e-4
    for _ in range(3):
        update(state)
        assert sizes(state.live).sub(1).abs().max() < 2e-4
        if state.steps_done == 1:  # the average is of this update alone
            assert all(torch.equal(before[name], value) for name, value in average_of(state).items())
    assert sizes(before).sub(1).abs().max() > 5e-4
    for name, value in fixed.items():
        assert torch.equal(value, state.live[name]) and torch.equal(value, average_of(state)[name])


def test_an_update_that_is_left_out_changes_no_bit_and_parts_are_held_as_the_whole(state):
    """Where weights are sharded, along the first dimension, a process has some outputs whole, or none."""
    before = {name: 3 * value.detach() for name, value in state.live.items()}
    whole = {name: value.clone() for name, value in before.items()}
    state.network.constrain(whole, torch.tensor(True))
    assert all(torch.equal(before[name], value) for name, value in whole.items())
    parts = [{name: value[at].clone() for name, value in before.items()} for at in (slice(0, 3), slice(3, None))]
    for each in (whole, *parts):
        state.network.constrain(each, torch.tensor(False))
    assert sizes(whole).sub(1).abs().max() < 2e-4
    for name, value in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value), name


@pytest.mark.long
def test_a_run_in_pieces_ends_with_the_same_bits_and_another_begins_with_its_frequencies(digits, options, tmp_path):
    """The other's seed draws others. Averages begin as they were, which the network uses alike."""
    data = Dataset(digits)
    more = {**options, "save_every": 2, "activation_checkpointing": True, "micro_batch": 8}
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        loop.run(data, tmp_path / name, resolve({**more, "steps": steps}, data))
    for file in ("model", "ema-power-0.1"):
        path = f"checkpoints/step-00000004/{file}.safetensors"
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "parts" / path).read_bytes()
    source = open_initial(tmp_path / "whole")
    run = TrainState(resolve({"seed": 5}, data, initial=source), data)
    drawn = run.live[FIXED[0]].clone()
    run.begin(source.weights(run.resolved.network, run.resolved.data))
    had = load_file(source.checkpoint.path / "ema-power-0.1.safetensors")
    assert not torch.equal(drawn, had[FIXED[0]])
    assert all(torch.equal(run.live[name], had[name]) for name in FIXED)
    assert all(torch.equal(value, had[name]) for name, value in average_of(run).items())
    assert sizes(run.live).sub(1).abs().max() < 2e-4 < sizes(average_of(run)).sub(1).abs().max()
