"""DiT: its size, its start, its places, what it is told, and what comes out beside the prediction."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.nn.networks import build, config_of, count_parameters, section_of
from elbocli.nn.networks.transformers import DiT, DiTBlock, DiTConfig, positions
from elbocli.nn.presets import load_preset

SMALL = DiTConfig(8, 3, 5, width=24, depth=2, heads=3, patch=2)


def awake(config: DiTConfig = SMALL) -> DiT:
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = DiT(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return network


def inputs(batch: int = 4, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 3, size, size, generator=draw)
    return z, torch.randn(batch, generator=draw) * 5, torch.arange(batch) % 5


def test_the_large_one_has_the_papers_parameters() -> None:
    """675 million, of which the paper's code counts its positions, 256 x 1152, and eight outputs."""
    network = load_preset("latents256-dit").network
    fits = {"image_size": 32, "image_channels": 4, "num_classes": 1000}
    with torch.device("meta"):
        counts = [
            count_parameters(build(config_of({**network, **fits, "variance": variance}, "")))
            for variance in (False, True)
        ]
    assert counts[1] + 256 * 1152 == 675_129_632
    assert counts[1] - counts[0] == (1152 + 1) * 16


@pytest.mark.parametrize("variance", [False, True])
def test_a_new_network_says_nothing(variance: bool) -> None:
    network = DiT(replace(SMALL, variance=variance))
    with torch.no_grad():
        out, everything = network(*inputs()), network.outputs(*inputs())
    assert out.shape == (4, 3, 8, 8) and not out.any() and out._base is None
    assert everything.shape == (4, 6 if variance else 3, 8, 8) and everything._base is None
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_weights_begin_as_the_papers_do() -> None:
    torch.manual_seed(0)
    network = DiT(replace(SMALL, width=96, num_classes=100))
    for module in (network.modulation, network.last, *(block.modulation for block in network.blocks)):  # type: ignore[union-attr]
        assert not module.weight.any() and not module.bias.any()  # type: ignore[union-attr]
    for module in (m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)):
        assert not module.bias.any()  # type: ignore[union-attr]
    spread = {name: float(value.detach().std()) for name, value in network.named_parameters() if value.any()}
    for name, found in spread.items():
        weight = network.get_parameter(name).flatten(1)
        xavier = math.sqrt(2 / (weight.shape[0] + weight.shape[1]))
        assert found == pytest.approx(0.02 if name.startswith("conditioning") else xavier, rel=0.1), name


def test_places_are_columns_then_rows_in_sines_then_cosines() -> None:
    side, width = 5, 12
    found = positions(side, width, torch.device("cpu")).view(side, side, width).numpy()
    omega = 10000.0 ** -(np.arange(3) / 3)
    for row in range(side):
        for column in range(side):
            wanted = [f(place * omega) for place in (column, row) for f in (np.sin, np.cos)]
            np.testing.assert_allclose(found[row, column], np.concatenate(wanted), atol=1e-7)


@pytest.mark.parametrize("code", ["logsnr:factor=3", "t-linear", "flow-reversed", "sigma"])
def test_the_level_is_told_by_cosines_and_sines_of_its_code(code: str) -> None:
    level = torch.linspace(-9, 9, 7)
    seen: list[Tensor] = []
    network = DiT(replace(SMALL, code=code))
    network.conditioning.code.register_forward_hook(lambda _, args, out: seen.append(out))
    network(inputs(7)[0], level, None)
    angle = parse_level_code(code)(level.double())[:, None] * torch.exp(
        -math.log(10000) * torch.arange(128, dtype=torch.float64) / 128
    )
    torch.testing.assert_close(seen[0].double(), torch.cat([angle.cos(), angle.sin()], 1), rtol=0, atol=1e-6)


def test_a_block_shifts_scales_and_gates_both_its_parts() -> None:
    torch.manual_seed(0)
    block = DiTBlock(12, 3, 0.0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, code = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)

    def centred(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()

    told = (code @ block.modulation.weight.T + block.modulation.bias).view(2, 6, 1, 12)
    shift, scale, gate, shift2, scale2, gate2 = told.unbind(1)
    q, k, v = block.qkv(centred(x) * (1 + scale) + shift).view(2, 5, 3, 3, 4).unbind(2)
    weight = torch.softmax(torch.einsum("bqhc,bkhc->bhqk", q, k) / 2, -1)
    y = x + gate * block.mix(torch.einsum("bhqk,bkhc->bqhc", weight, v).reshape(2, 5, 12))
    h = block.widen(centred(y) * (1 + scale2) + shift2)
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    torch.testing.assert_close(block(x, code), y + gate2 * block.narrow(h))
    nn.init.zeros_(block.modulation.weight)
    nn.init.zeros_(block.modulation.bias)
    assert torch.equal(block(x, code), x)


def test_no_class_has_a_row_of_its_own_unless_told_otherwise() -> None:
    z, logsnr, labels = inputs()
    nothing = torch.full_like(labels, -1)
    network = awake()
    assert network.conditioning.classes.weight.shape == (6, 24)
    with torch.no_grad():
        out = network(z, logsnr, labels)
        assert not torch.allclose(out, network(z, logsnr, (labels + 1) % 5))
        none = network(z, logsnr, nothing)
        assert torch.equal(none, network(z, logsnr, None))
        mixed = network(z, logsnr, torch.tensor([0, -1, 2, -1]))
        torch.testing.assert_close(mixed[[0, 2]], out[[0, 2]])
        torch.testing.assert_close(mixed[[1, 3]], none[[1, 3]])
        network.conditioning.classes.weight[-1] += 1
        assert not torch.allclose(none, network(z, logsnr, nothing))
    plain = awake(replace(SMALL, null_class=False))
    assert plain.conditioning.classes.weight.shape == (5, 24)
    assert awake(replace(SMALL, num_classes=0)).conditioning.classes is None
    with torch.no_grad():
        assert torch.equal(plain(z, logsnr, nothing), plain(z, logsnr, None))


def test_what_is_said_of_the_variance_comes_after_the_prediction() -> None:
    network = awake(replace(SMALL, variance=True))
    with torch.no_grad():
        both, first = network.outputs(*inputs()), network(*inputs())
        assert torch.equal(both[:, :3], first) and not torch.allclose(both[:, 3:], first)
        assert first._base is None and first.is_contiguous(memory_format=torch.channels_last)


def test_patches_come_out_where_they_went_in() -> None:
    """With everything between first and last layer taken out."""
    network = DiT(replace(SMALL, width=12)).double()
    nn.init.zeros_(network.first.bias)
    network.first.weight.data = torch.eye(12, dtype=torch.float64).view(12, 3, 2, 2)  # channel, row, column
    order = torch.arange(12).view(3, 2, 2).permute(1, 2, 0).flatten()  # row, column, channel
    seen: list[Tensor] = []
    network.first.register_forward_hook(lambda _, args, out: seen.append(out.flatten(2).transpose(1, 2)))
    network.last.register_forward_hook(lambda _, args, out: seen[0][..., order])
    z, logsnr, labels = inputs()
    torch.testing.assert_close(network(z.double(), logsnr, labels), z.double())


def test_a_place_matters() -> None:
    network = awake()
    with torch.no_grad():
        network.first.weight.zero_()
        patches = F.pixel_unshuffle(network(*inputs()), 2)
    assert patches.std((2, 3)).max() > 1e-3


def test_examples_of_a_batch_do_not_mix() -> None:
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        alone = network(z[2:3], logsnr[2:3], labels[2:3])
        torch.testing.assert_close(network(z, logsnr, labels)[2:3], alone, rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_every_parameter() -> None:
    network = awake()
    z, logsnr, labels = inputs(5)
    labels[-1] = -1
    network(z, logsnr, labels).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_it_is_exported_for_any_batch() -> None:
    network = awake(replace(SMALL, code="t-linear", variance=True))
    sizes = ({0: torch.export.Dim("images", max=1 << 20)},) * 3
    program = torch.export.export(network, inputs(), dynamic_shapes=sizes).module()
    for batch in (2, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs(batch)), network(*inputs(batch)))


def test_a_network_without_memory_takes_weights_as_they_are() -> None:
    network = awake(replace(SMALL, code="t-squaredcos"))
    with torch.device("meta"):
        empty = build(network.config)
        assert empty(*(x.to("meta") for x in inputs())).shape == (4, 3, 8, 8)
    empty.load_state_dict(network.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(empty.eval()(*inputs()), network(*inputs()))
    assert {name for name, _ in network.named_parameters()} == set(network.state_dict())


def test_a_code_is_written_in_full() -> None:
    config = replace(SMALL, code="t:linear")
    assert config.code == "t-linear:count=1000,start=0.0001,end=0.02"
    assert config_of(section_of(config), "here") == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 22}, "width"),
        ({"heads": 5}, "divide the width"),
        ({"heads": 0}, "heads"),
        ({"patch": 0}, "patch"),
        ({"depth": 0}, "depth"),
        ({"code": "lograsnr"}, "did you mean logsnr"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises((FormatError, UsageError)) as caught:
        config_of({**section_of(SMALL), **change}, "here")
    assert said in str(caught.value)
