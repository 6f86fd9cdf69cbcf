"""The 5/3 wavelet: back to within rounding, and the scale of its bands."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elbocli.nn.networks import transformers as wavelet

SIZES = pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 6), (4, 10), (32, 32), (6, 64)])


def test_bands_are_filters_of_three_and_five_taps():
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    low, high = np.array([-1, 2, 6, 2, -1]) / 8, np.array([-1, 2, -1]) / 2
    ll, lh, hl, hh = wavelet.bands(x, [1] * 4)[0]

    def at(vertical, horizontal, row, column):
        r, c = len(vertical) // 2, len(horizontal) // 2
        return vertical @ x[0, 0, row - r : row + r + 1, column - c : column + c + 1].numpy() @ horizontal

    assert float(ll[3, 4]) == pytest.approx(at(low, low, 6, 8))
    assert float(lh[3, 4]) == pytest.approx(at(low, high, 6, 9))
    assert float(hl[3, 4]) == pytest.approx(at(high, low, 7, 8))
    assert float(hh[3, 4]) == pytest.approx(at(high, high, 7, 9))


@SIZES
@pytest.mark.parametrize("levels", [1, 2])
def test_floats_come_back_to_within_rounding(levels, rows, columns):
    rows, columns = rows * levels, columns * levels
    x = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(1))
    y = wavelet.dwt(x, levels)
    assert y.shape == (2, 3 * 4**levels, rows >> levels, columns >> levels)
    torch.testing.assert_close(wavelet.idwt(y, levels), x, rtol=0, atol=2e-6)
    torch.testing.assert_close(wavelet.idwt(wavelet.dwt(x.double(), levels), levels), x.double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("levels", [1, 2])
def test_any_bands_are_those_of_an_image(levels):
    y = torch.randn(2, 4**levels, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(wavelet.dwt(wavelet.idwt(y, levels), levels), y, rtol=0, atol=1e-13)


def test_white_noise_has_the_variance_stated_and_exactly_one_when_scaled():
    """Exactly: each band is linear in x, so its variance is the sum of its squared coefficients."""
    impulses = torch.eye(24 * 24, dtype=torch.float64).view(-1, 1, 24, 24)
    (low, high), (lowest, coarse) = wavelet.VARIANCE
    plain = wavelet.bands(impulses, [1] * 4).square().sum(0)[:, 6, 6]
    assert plain.tolist() == pytest.approx([low * low, low * high, high * low, high * high])
    again = wavelet.bands(wavelet.bands(impulses, [1] * 4)[:, :1], [1] * 4).square().sum(0)[:, 3, 3]
    assert again.tolist() == pytest.approx([lowest**2, lowest * coarse, coarse * lowest, coarse**2])
    for levels, place in ((1, 6), (2, 3)):
        assert wavelet.dwt(impulses, levels).square().sum(0)[:, place, place].tolist() == pytest.approx([1] * 4**levels)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_flat_image_is_in_the_lowest_band_alone(levels):
    y = wavelet.dwt(torch.full((1, 3, 8, 8), 0.5), levels)
    low = wavelet.VARIANCE[levels - 1][0]
    torch.testing.assert_close(y[:, :3], torch.full((1, 3, 8 >> levels, 8 >> levels), 0.5 / low))
    assert y[:, 3:].abs().max() < 1e-6


@pytest.mark.parametrize("levels", [1, 2])
def test_nothing_is_made_of_numbers_on_the_way(levels):
    """A tensor made on a device waits for a copy to it, and can't be in a CUDA graph."""

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert any(isinstance(each, torch.Tensor) for each in tree_leaves(args)), func
            assert "lift" not in str(func)
            return func(*args, **(kwargs or {}))

    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    with Made():
        wavelet.idwt(wavelet.dwt(x, levels), levels).sum().backward()
