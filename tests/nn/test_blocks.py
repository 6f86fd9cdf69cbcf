"""Parts of the network."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from elbocli.nn.networks.unet import Attention, Block, Fourier, norm, resized


def test_attention_is_softmax_over_pixels() -> None:
    torch.manual_seed(0)
    layer = Attention(128).double()
    with torch.no_grad():
        layer.out.weight.normal_()
    x = torch.randn(2, 128, 3, 5, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).reshape(2, 3, 2, 64, 15).unbind(1)
    weight = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / 8, -1)
    mixed = torch.einsum("bhqk,bhck->bhcq", weight, v).reshape(2, 128, 3, 5)
    torch.testing.assert_close(layer(x), x + layer.out(mixed))


def test_a_new_block_of_equal_width_is_the_identity() -> None:
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(Block(8, 8, 16, 0.0, attention=True)(x, torch.randn(2, 16)), x)


def test_blocks_halve_and_double() -> None:
    x, code = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert Block(8, 12, 16, 0.0, resample="down")(x, code).shape == (2, 12, 2, 2)
    assert Block(8, 12, 16, 0.0, resample="up")(x, code).shape == (2, 12, 8, 8)


def test_groups_divide_the_channels() -> None:
    for channels in (4, 8, 12, 20, 96, 192, 768):
        layer = norm(channels)
        assert channels % layer.num_groups == 0 and layer.num_groups <= 32


def test_fourier_features_are_bounded_and_tell_levels_apart() -> None:
    level = torch.linspace(-15, 15, 61)
    code = Fourier(32)(level)
    assert code.abs().max() <= 1
    assert torch.cdist(code, code).fill_diagonal_(9).min() > 0.1


def test_autocast_on_cuda_leaves_doubled_images_in_half() -> None:
    """By torch's own rules, on tensors that say they are there."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            x = torch.empty(1, 8, 4, 4, device="cuda", dtype=torch.bfloat16)
            assert F.interpolate(x, scale_factor=2).dtype == torch.float32
            assert resized(x, "up").dtype == torch.bfloat16
            assert resized(x, "up").shape == (1, 8, 8, 8)
    finally:
        torch.set_autocast_enabled("cuda", before)
