"""What the network is told of its noise level and class, and how a block listens."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from elbocli.core.schedule import LEVEL_CODES
from elbocli.nn.networks.unet import Block, Conditioning, Fourier, LinearCode
from elbocli.runtime.device import PRECISIONS, Precision


def test_fourier_features_are_cosines_and_sines_of_minus_log_sigma():
    level = np.linspace(-15, 15, 31)
    frequency = 1e-4 ** (np.arange(16) / 16)
    angle = (level / 2)[:, None] * frequency
    wanted = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    np.testing.assert_allclose(Fourier(32)(torch.from_numpy(level)), wanted, atol=2e-6)


@pytest.mark.parametrize("spec", LEVEL_CODES)
def test_fourier_features_are_of_any_level_code(spec):
    """Of timesteps up to 1000, whose angles have no digits left in float32."""
    level = torch.linspace(-10, 10, 41)
    number = LEVEL_CODES[spec](level.double()).numpy()
    angle = number[:, None] * 1e-4 ** (np.arange(16) / 16)
    wanted = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    found = Fourier(32, LEVEL_CODES[spec].spec)(level)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_code_that_is_named_is_todays_where_it_is_the_same():
    level = torch.linspace(-15, 15, 31)
    torch.testing.assert_close(Fourier(32)(level), Fourier(32, "logsnr:factor=0.50")(level), rtol=0, atol=2e-6)


def test_a_class_adds_its_row_and_no_class_nothing_in_one_batch():
    torch.manual_seed(0)
    layer = Conditioning(Fourier(8), 16, 3)
    level = torch.tensor([-2.0, 0.5, 4.0])
    plain = layer.second(F.silu(layer.first(layer.code(level))))
    rows = layer.classes.weight
    wanted = F.silu(plain + torch.stack([rows[2], torch.zeros(16), rows[0]]))
    torch.testing.assert_close(layer(level, torch.tensor([2, -1, 0])), wanted)
    torch.testing.assert_close(layer(level, None), F.silu(plain))


def test_without_classes_labels_are_ignored():
    torch.manual_seed(0)
    layer = Conditioning(Fourier(8), 16, 0)
    level = torch.tensor([1.0])
    assert torch.equal(layer(level, torch.tensor([0])), layer(level, None))


def test_a_block_scales_and_shifts_its_normalised_features():
    torch.manual_seed(0)
    block = Block(8, 12, 16, 0.0).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.3)
    x, code = torch.randn(2, 8, 4, 4, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    h = block.conv1(F.silu(block.norm1(x)))
    scale, shift = (code @ block.scale_shift.weight.T + block.scale_shift.bias).view(2, 2, 12, 1, 1).unbind(1)
    h = block.conv2(F.silu((1 + scale) * block.norm2(h) + shift))
    torch.testing.assert_close(block(x, code), block.skip(x) + h)


def test_resampling_averages_down_and_repeats_up():
    x = torch.randn(1, 4, 6, 6)
    down, up = (Block(4, 4, 8, 0.0, resample=way)(x, torch.zeros(1, 8)) for way in ("down", "up"))
    torch.testing.assert_close(down, x.view(1, 4, 3, 2, 3, 2).mean((3, 5)))
    assert torch.equal(up, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_linear_code_is_a_quarter_of_the_level():
    level = torch.tensor([-15.0, 0.0, 2.0])
    assert LinearCode()(level).tolist() == [[-3.75], [0.0], [0.5]]


@pytest.mark.parametrize(
    ("weights", "precision"), [*((torch.float32, name) for name in PRECISIONS), (torch.bfloat16, "bf16")]
)
def test_neighbouring_levels_stay_apart_in_every_precision(weights, precision):
    """Sharded weights are in bf16 themselves."""
    torch.manual_seed(0)
    layer = Conditioning(LinearCode(), 16, 0).to(weights)
    seen = []
    layer.second.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    with torch.no_grad(), Precision(precision, torch.device("cpu")).autocast():
        layer(torch.tensor([14.0, 14.01]), None)
    wanted = F.silu(layer.first.double()(torch.tensor([[3.5], [3.5025]], dtype=torch.float64)))
    torch.testing.assert_close(seen[0], wanted, rtol=1e-5, atol=1e-5)


class OnCard(Tensor):
    """A tensor that says it is on CUDA."""

    is_cuda = True


class Rounding(TorchDispatchMode):
    """Multiplies float32 as CUDA does in TF32: with 10 bits of mantissa."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            *added, a, b = args
            args = (*added, *(rounded(x) if x.dtype == torch.float32 else x for x in (a, b)))
        return func(*args, **(kwargs or {}))


def rounded(x):
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("code", [LinearCode(), Fourier(8)], ids=["linear", "fourier"])
def test_the_level_is_not_rounded_where_cuda_multiplies_in_tf32(code, precision):
    torch.manual_seed(0)
    layer, seen = Conditioning(code, 16, 0), []
    layer.second.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    level = torch.tensor([14.0, 14.01]).as_subclass(OnCard)
    with torch.no_grad(), Rounding(), Precision(precision, torch.device("cpu")).autocast():
        told = layer(level, None)
    assert told.dtype == PRECISIONS[precision]
    wanted = F.silu(layer.first.double()(code(level).as_subclass(Tensor).double()))
    torch.testing.assert_close(seen[0].as_subclass(Tensor), wanted, rtol=1e-6, atol=1e-6)
