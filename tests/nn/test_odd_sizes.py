"""Networks that halve the image take any size: one that can't be halved is padded with zeros, and the output cut."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.nn.networks import NetworkConfig, build
from elbocli.nn.networks.edm2 import EDM2Config
from elbocli.nn.networks.transformers import DiTConfig, UViTConfig
from elbocli.nn.networks.unet import UNetConfig

UNET = UNetConfig(8, 3, 4, 8, (1, 2, 2), 1, (2, 4))
UVIT = UViTConfig(8, 3, 4, 8, (1, 2), 1, depth=1, heads=2, embedding=16)
EDM2 = EDM2Config(8, 3, 4, 8, (1, 2, 2), 1, (2, 4))
DIT = DiTConfig(8, 3, 4, width=16, depth=1, heads=2, patch=4)
CONFIGS = [UNET, EDM2, UVIT, replace(UVIT, patching="dwt-1"), replace(UVIT, patching="dwt-2"), DIT]
IDS = ["unet", "edm2", "uvit", "dwt-1", "dwt-2", "dit"]


def awake(config: NetworkConfig) -> nn.Module:
    """The network with all weights away from zero."""
    torch.manual_seed(1)
    network = build(config).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs(size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    z = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    return z, torch.tensor([-3.0, 4.0]), torch.tensor([0, 3])


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
@pytest.mark.parametrize("size", [9, 14, 15, 17, 25])
def test_an_odd_size_is_the_next_that_can_be_halved_with_zeros_around(config: NetworkConfig, size: int) -> None:
    odd = config.for_size(size)
    whole = odd.for_size(odd.side)  # type: ignore[attr-defined]
    network, wider = awake(odd), build(whole).double()
    wider.load_state_dict(network.state_dict())
    z, logsnr, labels = inputs(size)
    more = whole.image_size - size
    out = network(z, logsnr, labels)
    assert out.shape == z.shape and out._base is None
    torch.testing.assert_close(out, wider(F.pad(z, (0, more, 0, more)), logsnr, labels)[..., :size, :size])
    out.square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in network.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_size_that_can_be_halved_is_taken_as_it_is(config: NetworkConfig) -> None:
    for size in (16, 32):
        assert config.for_size(size).side == size  # type: ignore[attr-defined]


def test_attention_stays_as_many_halvings_down_at_odd_sizes() -> None:
    assert UNET.for_size(25).attention == (7, 14)
    assert UNET.for_size(25).for_size(8) == UNET
