"""Attention at every width that a config may ask for."""

import pytest
import torch

from elbocli.nn.networks.blocks import Attention
from elbocli.nn.networks.unet import UNet, UNetConfig


@pytest.mark.parametrize("channels", [4, 60, 64, 96, 128, 160, 192, 200, 260, 300, 320, 332, 508, 768])
def test_heads_divide_the_channels_at_any_width(channels):
    layer = Attention(channels)
    assert channels % layer.heads == 0
    x = torch.randn(1, channels, 2, 3)
    assert layer(x).shape == x.shape


@pytest.mark.parametrize("channels", [128, 192, 576, 768])
def test_published_widths_have_64_channels_a_head(channels):
    assert Attention(channels).heads == channels // 64


@pytest.mark.parametrize("channels", [4, 12, 100, 132])
def test_a_network_of_any_allowed_width_runs(channels):
    config = UNetConfig(8, 1, 2, channels=channels, levels=(1, 2), blocks=1, attention=(8, 4))
    with torch.device("meta"):
        z = torch.empty(2, 1, 8, 8)
        assert UNet(config)(z, torch.empty(2), torch.zeros(2, dtype=torch.long)).shape == z.shape


def test_pixels_are_a_set_to_attention():
    torch.manual_seed(0)
    layer = Attention(64).double()
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(1, 64, 4, 4, dtype=torch.float64)
    order = torch.randperm(16)
    moved = layer(x.flatten(2)[:, :, order].view(1, 64, 4, 4)).flatten(2)
    torch.testing.assert_close(moved, layer(x).flatten(2)[:, :, order])
