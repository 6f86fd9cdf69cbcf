"""The parts that networks share are what they say: codes of levels, attention, blocks, and a group norm in few passes."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from elbocli.core.schedule import LEVEL_CODES
from elbocli.networks.unet import (
    CODE,
    Attention,
    Block,
    Conditioning,
    Fourier,
    GroupNorm,
    LinearCode,
    UNet,
    UNetConfig,
    norm,
    resized,
)
from elbocli.runtime.device import DTYPES, Precision

CPU = torch.device("cpu")

# What a network is told of its noise level


@pytest.mark.parametrize("code", [CODE, *LEVEL_CODES])
def test_fourier_features_are_cosines_and_sines_of_any_level_code(code):
    """Level codes of up to 1000 are among them; float32 is too coarse for their angles."""
    level = torch.linspace(-15, 15, 41)
    angle = LEVEL_CODES.parse(code)(level.double())[:, None] * 1e-4 ** (torch.arange(16, dtype=torch.float64) / 16)
    found = Fourier(32, LEVEL_CODES.parse(code).spec)(level)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.cat([angle.cos(), angle.sin()], 1), atol=2e-6, rtol=0)
    assert LinearCode()(level).squeeze(1).tolist() == (level / 4).tolist()


class OnCard(Tensor):
    """A tensor that says it is on CUDA."""

    is_cuda = True


class Rounding(TorchDispatchMode):
    """Multiplies float32 as CUDA does in TF32: with 10 bits of mantissa."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            args = [self.rounded(each) if each.dtype == torch.float32 else each for each in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(x: Tensor) -> Tensor:
        return ((x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.mark.parametrize(("weights", "precision"), [*((torch.float32, name) for name in DTYPES), (torch.bfloat16, "bf16")])
@pytest.mark.parametrize("code", [LinearCode(), Fourier(8)], ids=["linear", "fourier"])
def test_the_level_is_not_rounded_by_a_precision_nor_by_a_cards_tf32(code, weights, precision):
    """Sharded weights are in bf16 themselves."""
    torch.manual_seed(0)
    layer = Conditioning(code, 16, 0).to(weights)
    seen = list[Tensor]()
    layer.second.register_forward_pre_hook(lambda _, args: seen.append(args[0].as_subclass(Tensor).double()))
    level = torch.tensor([14.0, 14.01]).as_subclass(OnCard)  # type: ignore[arg-type]
    with torch.no_grad(), Rounding(), Precision(precision, CPU).autocast():
        told = layer(level, None)
    assert told.dtype == DTYPES[precision]
    wanted = F.silu(layer.first.double()(code(level).as_subclass(Tensor).double()))
    torch.testing.assert_close(seen[0], wanted, rtol=1e-6, atol=1e-6)


# Attention and blocks


@pytest.mark.parametrize("channels", [4, 60, 64, 100, 128, 192, 332, 768])
def test_heads_and_groups_divide_the_channels_at_any_width_and_published_heads_have_64(channels):
    layer = Attention(channels)
    x = torch.randn(1, channels, 2, 3)
    assert channels % layer.heads == 0 and layer(x).shape == x.shape
    assert channels % 64 or layer.heads == channels // 64
    groups = norm(channels).num_groups
    assert channels % groups == 0 and channels // groups >= 4 and (groups == 32) == (channels in (128, 192, 768))


def test_a_new_block_of_equal_width_is_the_identity():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(Block(8, 8, 16, 0.0, attention=True)(x, torch.randn(2, 16)), x)


def test_autocast_on_cuda_leaves_doubled_images_in_half():
    """By torch's own rules, on tensors that say they are there."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            x = torch.empty(1, 8, 4, 4, device="cuda", dtype=torch.bfloat16)
            assert F.interpolate(x, scale_factor=2).dtype == torch.float32
            assert resized(x, "up").dtype == torch.bfloat16 and resized(x, "up").shape == (1, 8, 8, 8)
    finally:
        torch.set_autocast_enabled("cuda", before)


SMALL = UNetConfig(8, 3, 5, channels=32, levels=(1, 2), blocks=1, attention=(8, 4))


def test_heads_groups_eps_and_embedding_are_as_said():
    network = UNet(replace(SMALL, heads=2, groups=16, norm_eps=1e-3, embedding=24))
    norms = [each for each in network.modules() if isinstance(each, GroupNorm)]
    assert {(each.num_groups, each.eps) for each in norms} == {(16, 1e-3)}
    attentions = [each for each in network.modules() if isinstance(each, Attention)]
    assert len(attentions) == 7 and {each.heads for each in attentions} == {2}
    assert network.conditioning.second.weight.shape == (24, 24)
    assert network.units()[0].scale_shift.in_features == 24
    by_width = UNet(replace(SMALL, head_width=16))
    found = {(each.qkv.in_channels, each.heads) for each in by_width.modules() if isinstance(each, Attention)}
    assert found == {(32, 2), (64, 4)}
    for middle in (True, False):
        bare = UNet(replace(SMALL, attention=(), middle_attention=middle))
        assert [each for each, unit in enumerate(bare.units()) if isinstance(unit.attention, Attention)] == [3] * middle


# Group norm with scale, shift and SiLU: torch's on a CPU; elsewhere one in the image's precision and layout

GROUPS = 4
CHANNELS = 24
EVERY = pytest.mark.parametrize(("scaled", "silu"), [(False, False), (False, True), (True, False), (True, True)])


def group_norm(dtype: torch.dtype = torch.float64, fused: bool | None = True) -> GroupNorm:
    torch.manual_seed(0)
    layer = GroupNorm(GROUPS, CHANNELS).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.fused = fused
    return layer


def inputs(scaled: bool, dtype: torch.dtype = torch.float64, mean: float = 0.5) -> list[Any]:
    """An image in channels last, and its scale and shift."""
    torch.manual_seed(1)
    x = (torch.randn(3, CHANNELS, 6, 4, dtype=torch.float64) + mean).to(dtype, memory_format=torch.channels_last)
    rest = [torch.randn(3, CHANNELS).to(dtype).requires_grad_() if scaled else None for _ in range(2)]
    return [x.requires_grad_(), *rest]


def plain(layer: GroupNorm, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    """Normalise, scale, shift and activate by torch's own functions."""
    h = F.group_norm(x, GROUPS, layer.weight, layer.bias, layer.eps)
    if scale is not None and shift is not None:
        h = torch.addcmul(shift[..., None, None], h, scale[..., None, None] + 1)
    return F.silu(h) if silu else h


def with_gradients(out: Tensor, *of: Tensor | None) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return [out, *torch.autograd.grad(out, [each for each in of if each is not None], weight)]


@EVERY
def test_values_and_gradients_are_torchs_and_on_a_cpu_to_the_bit(scaled, silu):
    layer = group_norm()
    given = inputs(scaled)
    both = [with_gradients(out, *given, *layer.parameters()) for out in (layer(*given, silu), plain(layer, *given, silu=silu))]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    layer = group_norm(torch.float32, fused=None)
    given = inputs(scaled, torch.float32)
    assert torch.equal(layer(*given, silu), plain(layer, *given, silu=silu))


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mean", [0.5, 30.0])
def test_only_what_is_written_is_rounded(scaled, silu, dtype, mean):
    """Statistics, and what there is one of for a channel, are float32: errors are those of rounding an image."""
    layer = group_norm(torch.float32)
    given = inputs(scaled, dtype, mean)
    ours = with_gradients(layer(*given, silu), *given, *layer.parameters())
    exact = [each if each is None else each.detach().double().requires_grad_() for each in given]
    wide = copy.deepcopy(layer).double()
    theirs = with_gradients(plain(wide, *exact, silu=silu), *exact, *wide.parameters())
    assert ours[0].dtype == ours[1].dtype == dtype
    roundings = [
        float((one - other).detach().norm() / other.detach().norm()) / torch.finfo(dtype).eps
        for one, other in zip(ours, theirs, strict=True)
    ]
    few = 1 if dtype != torch.float32 else 10
    assert max(roundings[:2]) < few
    assert max(roundings[2:]) < few * max(1, 0.4 * mean)  # sums of a product, in which a large mean cancels
