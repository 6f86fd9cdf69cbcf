"""The transformers: DiT's start and patches, U-ViT's bands, dropout and blocks, and the 5/3 wavelet that halves its images."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elbocli.networks.transformers import (
    PATCHINGS,
    VARIANCE,
    DiT,
    DiTBlock,
    DiTConfig,
    JiTBlock,
    TransformerBlock,
    UViT,
    UViTConfig,
    bands,
    dwt,
    idwt,
    rotary_angles,
    rotated,
)

DIT = DiTConfig(8, 3, 100, width=96, depth=2, heads=3, patch=2)
UVIT = UViTConfig(16, 3, 5, channels=8, levels=(1, 2, 3), blocks=1, depth=2, heads=3, embedding=12, dropout=0.5)
LEVELS = pytest.mark.parametrize("levels", [1, 2])


def inputs(config: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(config.example(4)[0].shape), torch.randn(4) * 5, torch.arange(4)


def awake(module: Any, std: float = 0.3) -> Any:
    """A module in float64, all of whose weights are random."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double()


# DiT; tests of `elbo import` hold its formula


def test_weights_of_a_dit_begin_as_the_papers_do():
    """All shifts, scales and gates begin at zero, so that each block begins as the identity."""
    torch.manual_seed(0)
    network: Any = DiT(DIT).requires_grad_(False)
    for module in (network.modulation, network.last, *(block.modulation for block in network.blocks)):
        assert not module.weight.any()
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        elif value.any():
            xavier = math.sqrt(2 / (len(value) + value[0].numel()))
            wanted = 0.02 if name.startswith("conditioning") else xavier
            assert float(value.std()) == pytest.approx(wanted, rel=0.1), name
    x = torch.randn(2, 5, 12)
    assert torch.equal(DiTBlock(12, 3, 0.0)(x, torch.randn(2, 12)), x)


# U-ViT


def test_a_place_matters_to_the_transformer_of_a_uvit():
    network = awake(UViT(replace(UVIT, levels=(1,), heads=2)), 0.1).float().eval()
    with torch.no_grad():
        network.first.weight.zero_()
        assert network(*inputs(UVIT)).std((2, 3)).min() > 1e-3
        network.position.zero_()
        assert network(*inputs(UVIT))[:, :, 1:-1, 1:-1].std((2, 3)).max() < 1e-4


def test_a_transformer_block_is_attention_and_a_conditioned_mlp():
    block = awake(TransformerBlock(12, 3, 8, 0.0))
    x = torch.randn(2, 5, 12).double()
    code = torch.randn(2, 8).double()
    q, k, v = block.qkv(F.layer_norm(x, (12,), block.norm1.weight, block.norm1.bias)).view(2, 5, 3, 3, 4).unbind(2)
    weight = torch.softmax(torch.einsum("bqhc,bkhc->bhqk", q, k) / 2, -1)
    y = x + block.mix(torch.einsum("bhqk,bkhc->bqhc", weight, v).reshape(2, 5, 12))
    scale, shift = block.scale_shift(code).view(2, 2, 1, 12).unbind(1)
    h = block.widen((1 + scale) * F.layer_norm(y, (12,)) + shift)
    wide = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    torch.testing.assert_close(block(x, code), y + block.narrow(wide))


@pytest.mark.parametrize("patching", ["dwt-1", "dwt-2"])
def test_a_uvit_takes_bands_and_puts_its_own_together_in_the_precision_of_the_image(patching):
    """With everything between first and last layer taken out, each band is given back as it came in."""
    network = UViT(replace(UVIT, patching=patching))
    levels = PATCHINGS[patching]
    given = inputs(UVIT)
    seen = dict[str, Tensor]()
    network.first.register_forward_pre_hook(lambda _, args: seen.update(first=args[0]))
    hook = network.last.register_forward_hook(lambda *_: seen["first"])
    torch.testing.assert_close(network(*given), given[0])
    torch.testing.assert_close(seen["first"], dwt(given[0], levels))
    hook.remove()
    network.last.register_forward_hook(lambda _, args, out: seen.update(last=out))
    nn.init.normal_(network.last.weight)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = network(*given)
    assert (seen["last"].dtype, out.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, idwt(seen["last"].float(), levels))


# The wavelet


def test_bands_are_filters_of_three_and_five_taps():
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    taps = {"l": np.array([-1, 2, 6, 2, -1]) / 8, "h": np.array([-1, 2, -1]) / 2}
    for found, (down, across) in zip(bands(x, [1] * 4)[0], itertools.product("lh", "lh"), strict=True):
        row = 6 + (down == "h")
        column = 8 + (across == "h")
        r = len(taps[down]) // 2
        c = len(taps[across]) // 2
        around = x[0, 0, row - r : row + r + 1, column - c : column + c + 1].numpy()
        assert float(found[3, 4]) == pytest.approx(taps[down] @ around @ taps[across])


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 6), (4, 10), (32, 32)])
@LEVELS
def test_images_come_back_to_within_rounding(levels, rows, columns):
    x = torch.randn(2, 3, rows * levels, columns * levels)
    y = dwt(x, levels)
    assert y.shape == (2, 3 * 4**levels, rows * levels >> levels, columns * levels >> levels)
    torch.testing.assert_close(idwt(y, levels), x, rtol=0, atol=3e-6)
    torch.testing.assert_close(idwt(dwt(x.double(), levels), levels), x.double(), rtol=0, atol=1e-14)


@LEVELS
def test_white_noise_has_variance_one_in_every_band_and_a_flat_image_is_in_the_lowest_alone(levels):
    """Exactly: each band is linear in x, so its variance is the sum of its squared coefficients."""
    impulses = torch.eye(24 * 24, dtype=torch.float64).view(-1, 1, 24, 24)
    place = 12 >> levels
    assert dwt(impulses, levels).square().sum(0)[:, place, place].tolist() == pytest.approx([1] * 4**levels)
    y = dwt(torch.full((1, 3, 8, 8), 0.5), levels)
    low = VARIANCE[levels - 1][0]
    torch.testing.assert_close(y[:, :3], torch.full((1, 3, 8 >> levels, 8 >> levels), 0.5 / low))
    assert y[:, 3:].abs().max() < 1e-6


def test_rotary_products_depend_on_the_distance_alone_and_tokens_before_are_not_rotated():
    angle = rotary_angles(4, 16, 2, torch.device("cpu"))
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    q, k = (rotated(each.expand(1, 1, 18, 16), angle)[0, 0] for each in (q, k))
    assert torch.equal(q[0], q[1])
    products = (q[2:] @ k[2:].T).view(4, 4, 4, 4)  # row and column of q, row and column of k
    torch.testing.assert_close(products[:3, :3, :3, :3], products[1:, 1:, 1:, 1:], atol=1e-4, rtol=0)
    assert float((products[0, 0] - products[0, 0].T).abs().max()) > 0.1  # rows and columns are told apart


def test_a_jit_block_drops_the_projection_of_attention_and_the_input_of_swiglus_last_layer():
    """Dropout acts where JiT's own block has it (LTH14/JiT, model_jit.py, `Attention.proj_drop` and `SwiGLUFFN.ffn_dropout`)."""
    block = awake(JiTBlock(24, 2, dropout=0.5)).train()
    torch.manual_seed(2)
    x = torch.randn(3, 9, 24).double()
    code = torch.randn(3, 24).double()
    angle = rotary_angles(3, 12, 0, torch.device("cpu"))
    torch.manual_seed(3)
    found = block(x, code, angle)
    torch.manual_seed(3)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(code)[:, None].chunk(6, -1)
    q, k, v = block.qkv(block.norm1(x) * (1 + scale1) + shift1).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(rotated(block.norm_q(q), angle), rotated(block.norm_k(k), angle), v)
    x = x + gate1 * F.dropout(block.mix(h.transpose(1, 2).flatten(2)), 0.5)
    gate, value = block.widen(block.norm2(x) * (1 + scale2) + shift2).chunk(2, -1)
    torch.testing.assert_close(found, x + gate2 * block.narrow(F.dropout(F.silu(gate) * value, 0.5)))
