"""What is reckoned of a GPU's kernels (tests/bench/roofline.py), by hand on small ones; and that networks take the fast ones."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from elbocli.nn.networks.dit import DiTConfig
from elbocli.nn.networks.unet import UNetConfig
from elbocli.nn.networks.uvit import UViTConfig
from elbocli.nn.presets import NAMES
from elbocli.run.preset_data import preset_data
from elbocli.run.settings import resolve
from elbocli.train.memory import measure_step

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import roofline

UNET = UNetConfig(16, 3, 10, channels=64, levels=(1, 2), blocks=1, attention=(8,), dropout=0.1)
UVIT = UViTConfig(32, 3, 10, 64, (1, 2, 4), 1, 3, 2, 64, patching="dwt-1", dropout=0.1)
DIT = DiTConfig(32, 3, 10, width=256, depth=3, heads=4, patch=2, dropout=0.1)
EVERY = pytest.mark.parametrize("config", [UNET, UVIT, DIT], ids=["unet", "uvit", "dit"])
IMAGES = 256
LARGE = 1_500_000
"""Bytes that all their images in bf16 have, and no weight."""


def traced(work, *shapes, layout=torch.contiguous_format, multiplying="bf16"):
    """Kernels of a function of meta tensors in bf16."""
    with torch.device("meta"):
        inputs = [torch.empty(shape, dtype=torch.bfloat16) for shape in shapes]
        inputs = [each.contiguous(memory_format=layout) if each.dim() == 4 else each for each in inputs]
        with roofline.Trace(multiplying) as trace, roofline.Card("bf16"):
            work(*inputs)
    return trace.kernels


def test_a_kernels_bytes_and_operations_are_those_of_its_tensors():
    (product,) = traced(lambda a, b: a @ b, (100, 200), (200, 300))
    assert product.bytes == 2 * (100 * 200 + 200 * 300 + 100 * 300) and product.flops == 2 * 100 * 200 * 300
    assert product.seconds == product.bytes / roofline.MEMORY  # a small one
    (large,) = traced(lambda a, b: a @ b, (4096, 4096), (4096, 4096))
    assert large.seconds == large.flops / roofline.PEAK["bf16"]
    add, view = traced(lambda a, b: (a + b, a.view(-1)), (10, 10), (10, 1)), traced(lambda a: a.view(-1), (10, 10))
    assert [each.bytes for each in add] == [2 * (100 + 10 + 100)] and view == []


def test_a_convolution_lays_out_what_it_is_given():
    shapes = (2, 8, 4, 4), (8, 8, 3, 3)
    assert len(traced(F.conv2d, *shapes, layout=torch.channels_last)) == 1
    mixed = traced(lambda x, w: F.conv2d(x.contiguous(), w), *shapes, layout=torch.channels_last)
    assert [each.name for each in mixed] == ["aten::clone", "aten::contiguous", "aten::convolution"]


def test_fusing_leaves_one_read_and_one_write_between_products():
    def work(a, b, c):
        return ((a @ b).sigmoid() * 2 + c).sum(1) + ((a @ b) * 3).relu() @ b

    shapes = (64, 64), (64, 64), (64, 64)
    kernels = list(roofline.fused(traced(work, *shapes)))
    image = 2 * 64 * 64
    assert [each.kind for each in kernels].count("product") == 3
    others = [each for each in kernels if each.kind != "product"]
    whole = sorted(round(each.bytes / image) for each in others)
    # The sum reads a product and c; what multiplies reads a product and is written; the end reads a product and the sum.
    assert whole == [2, 2, 2] and sum(each.bytes for each in others) < 6.2 * image


@EVERY
def test_operations_are_those_of_the_plan(config):
    kernels = roofline.step(config, "bf16", "bf16", False, IMAGES)
    assert sum(each.flops for each in kernels) / IMAGES == pytest.approx(
        measure_step(config, "fp32").step_flops, rel=0.1
    )


@EVERY
@pytest.mark.parametrize("sharded", [False, True])
def test_on_cuda_no_image_is_copied_into_another_layout_and_attention_is_flash(config, sharded):
    kernels = roofline.step(config, "bf16", "bf16", sharded, IMAGES)
    names = Counter(each.name for each in kernels)
    assert names["aten::native_group_norm"] == 0 and not names["aten::_safe_softmax"] and not names["aten::_softmax"]
    attentions = names["aten::_scaled_dot_product_flash_attention"]
    assert attentions == names["aten::_scaled_dot_product_flash_attention_backward"] >= 2
    forward = kernels[: next(i for i, each in enumerate(kernels) if "backward" in each.name)]
    large = {each.name for each in forward if sum(each.reads.values()) > LARGE}
    assert "aten::contiguous" not in large
    assert (
        isinstance(config, UViTConfig | DiTConfig) or not {"aten::_to_copy", "aten::clone"} & large
    )  # tokens are float32


@pytest.mark.parametrize("name", NAMES)
def test_a_presets_heads_are_narrow_enough_for_flash_attention(name):
    config = resolve({"preset": name}, preset_data(name)).network
    if isinstance(config, UViTConfig | DiTConfig):
        assert config.width // config.heads <= roofline.FLASH_MOST


@pytest.mark.slow
def test_bounds_are_ordered_and_whole():
    eager, fused = (bound for bound in roofline.bounds("cifar") if bound.way in ("bf16 eager", "bf16 fused"))
    assert 0 < eager.images_per_s < fused.images_per_s and fused.gigabytes < eager.gigabytes
    assert 1e3 / fused.images_per_s == pytest.approx(fused.products_ms + fused.other_ms + fused.update_ms)
