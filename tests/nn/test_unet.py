"""The ADM U-Net: its size, its start, what it listens to."""

from dataclasses import replace

import pytest
import torch

from elbocli.core.schedule import LEVEL_CODES
from elbocli.errors import FormatError, UsageError
from elbocli.nn.networks import build, config_of, count_parameters, section_of
from elbocli.nn.networks.unet import Attention, GroupNorm, UNet, UNetConfig
from elbocli.nn.presets import load_preset

SMALL = UNetConfig(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,))


def awake(config: UNetConfig = SMALL) -> UNet:
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = UNet(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return network


def inputs(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 8, 8, generator=draw), torch.randn(batch, generator=draw) * 5, torch.arange(batch) % 5


def test_imagenet64_has_the_size_of_edms_network() -> None:
    with torch.device("meta"):
        section = {**load_preset("imagenet64").network, "image_size": 64, "image_channels": 3, "num_classes": 1000}
        assert count_parameters(build(config_of(section, "imagenet64"))) == 295_899_267


def test_a_new_network_says_nothing() -> None:
    z, logsnr, labels = inputs()
    assert not UNet(SMALL)(z, logsnr, labels).any()


def test_level_and_class_matter_and_no_class_is_minus_one() -> None:
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        out = network(z, logsnr, labels)
        assert not torch.allclose(out, network(z, logsnr + 1, labels))
        assert not torch.allclose(out, network(z, logsnr, (labels + 1) % 5))
        assert torch.equal(network(z, logsnr, torch.full_like(labels, -1)), network(z, logsnr, None))


def test_examples_of_a_batch_do_not_mix() -> None:
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        alone = network(z[2:3], logsnr[2:3], labels[2:3])
        torch.testing.assert_close(network(z, logsnr, labels)[2:3], alone, rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_every_parameter() -> None:
    network = awake()
    network(*inputs(5)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_heads_groups_eps_and_embedding_are_as_said() -> None:
    changed = replace(SMALL, channels=32, attention=(8, 4), heads=2, groups=16, norm_eps=1e-3, embedding=24)
    network = UNet(changed)
    norms = [each for each in network.modules() if isinstance(each, GroupNorm)]
    assert norms and {(each.num_groups, each.eps) for each in norms} == {(16, 1e-3)}
    attentions = [each for each in network.modules() if isinstance(each, Attention)]
    assert len(attentions) == 7 and {each.heads for each in attentions} == {2}
    assert network.conditioning.second.weight.shape == (24, 24)
    assert network.units()[0].scale_shift.in_features == 24
    by_width = UNet(replace(SMALL, channels=32, attention=(8, 4), head_width=16))
    found = {(each.qkv.in_channels, each.heads) for each in by_width.modules() if isinstance(each, Attention)}
    assert found == {(32, 2), (64, 4)}


def test_the_middle_has_attention_unless_it_is_told_not_to() -> None:
    for wanted in (True, False):
        network = UNet(replace(SMALL, attention=(), middle_attention=wanted))
        assert any(isinstance(each, Attention) for each in network.modules()) == wanted


def test_a_fraction_of_a_level_has_fewer_channels_and_whole_numbers_are_written_whole() -> None:
    config = replace(SMALL, channels=16, levels=(0.5, 1.0, 2))
    assert section_of(config)["levels"] == [0.5, 1, 2]
    assert [type(level) for level in section_of(config)["levels"]] == [float, int, int]
    assert config_of(section_of(config), "here") == config
    network = awake(config)
    assert network.first.out_channels == network.last.in_channels == 8
    assert network(*inputs()).shape == (4, 3, 8, 8)


def test_a_learned_variance_comes_behind_and_forward_leaves_it_out() -> None:
    network = awake(replace(SMALL, image_size=7, variance=True))
    z, logsnr, labels = inputs()
    z = z[..., :7, :7]
    with torch.no_grad():
        whole, out = network.outputs(z, logsnr, labels), network(z, logsnr, labels)
        assert whole.shape == (4, 6, 7, 7) and out.shape == (4, 3, 7, 7)
        assert torch.equal(whole[:, :3], out) and whole[:, 3:].any()
        plain = awake()
        assert torch.equal(plain.outputs(*inputs()), plain(*inputs()))


@pytest.mark.parametrize("code", LEVEL_CODES)
def test_a_network_told_any_level_code_compiles_to_one_graph(code: str) -> None:
    network = awake(replace(SMALL, levels=(1,), attention=(), code=code))
    torch._dynamo.reset()
    whole = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(*inputs()), network(*inputs()))


def test_levels_that_do_not_fit_are_refused() -> None:
    for change in (
        {"image_size": 3, "levels": (1, 2, 2)},
        {"channels": 6},
        {"levels": ()},
        {"dropout": 1.0},
        {"image_size": 0},
        {"image_channels": 0},
        {"num_classes": -1},
        {"blocks": 0},
        {"levels": (0.3,)},
        {"levels": (1, float("nan"))},
        {"levels": (1, -0.5)},
        {"code": "t:lineal"},
        {"code": "sigma:factor=2"},
        {"heads": 3},
        {"heads": -1},
        {"head_width": 0},
        {"groups": 3},
        {"groups": -2},
        {"embedding": -1},
        {"norm_eps": 0.0},
        {"norm_eps": float("nan")},
    ):
        with pytest.raises((FormatError, UsageError), match=r"here|network: "):
            config_of({**section_of(SMALL), **change}, "here")
