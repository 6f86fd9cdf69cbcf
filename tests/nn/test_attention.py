"""Attention at every width that a config may ask for."""

import pytest
import torch
from torch.nn import functional as F

from elbocli.nn.networks.unet import Attention, UNet, UNetConfig


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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
def test_a_pixels_channels_are_together_for_flash_attention(monkeypatch, fused, last):
    """Whatever layout weights and images have: sharded weights have channels first. In channels last without a copy."""
    seen = {}
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: attend(*seen.setdefault("qkv", qkv)))
    layout = torch.channels_last if last else torch.contiguous_format
    layer = Attention(128)
    layer.to(memory_format=layout)  # type: ignore[call-overload]
    layer.norm.fused = fused
    layer.qkv.register_forward_hook(lambda _, args, out: seen.setdefault("out", out))
    x = torch.randn(2, 128, 4, 6).contiguous(memory_format=layout)
    layer(x)
    heads = seen["out"].flatten(2).unflatten(1, (3, 2, 64)).transpose(3, 4).unbind(1)
    for one, other in zip(seen["qkv"], heads, strict=True):
        assert one.shape == (2, 2, 24, 64) and one.stride(-1) == 1
        assert torch.equal(one, other)
    if last:
        assert {each.untyped_storage().data_ptr() for each in seen["qkv"]} == {seen["out"].untyped_storage().data_ptr()}
