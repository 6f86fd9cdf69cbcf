"""The kernels that CUDA would take of a training step, seen without a card: in bf16, attention is flash and no image is copied."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from elbocli.nn.networks import NetworkConfig, build, place
from elbocli.nn.networks.transformers import DiTConfig, UViTConfig
from elbocli.nn.networks.unet import UNetConfig
from elbocli.nn.presets import NAMES
from elbocli.run.settings import preset_data, resolve

UNET = UNetConfig(16, 3, 10, channels=64, levels=(1, 2), blocks=1, attention=(8,), dropout=0.1)
UVIT = UViTConfig(32, 3, 10, 64, (1, 2, 4), 1, 3, 2, 64, patching="dwt-1", dropout=0.1)
DIT = DiTConfig(32, 3, 10, width=256, depth=3, heads=4, patch=2, dropout=0.1)
IMAGES, LARGE = 256, 1_500_000
"""LARGE: bytes that all images have in bf16, and no weight."""
FLASH_MOST = 256
aten = torch.ops.aten
CONVOLUTIONS = {aten.convolution: 2, aten.convolution_backward: 3}
"""Tensors among the first arguments that cuDNN wants in one memory layout."""


def as_autocast(func: Any, args: Any) -> Any:
    """Return a function's arguments in the precision in which CUDA's autocast to bfloat16 runs it."""
    if func in (F.linear, F.conv2d, F.scaled_dot_product_attention):
        return [value.to(torch.bfloat16) if isinstance(value, Tensor) else value for value in args]
    return (args[0].float(), *args[1:]) if func in (F.group_norm, F.layer_norm, F.rms_norm) else args


class Card(TorchFunctionMode):
    """Run functions in the precision of CUDA's autocast, and attention by the kernel that CUDA takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = as_autocast(func, args)
        if func is F.scaled_dot_product_attention and all(q.stride(-1) == 1 and q.itemsize == 2 for q in args):
            return aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    """Count operations on meta tensors by name; those of large images as `large NAME`, with cuDNN's copies as `layout`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, count = func.overloadpacket, CONVOLUTIONS.get(func.overloadpacket, 0)
        name, large = packet.__name__, any(isinstance(a, Tensor) and a.numel() * a.itemsize > LARGE for a in args)
        self.names.update([name, f"large {name}"] if large else [name])
        if not count:
            return func(*args, **(kwargs or {}))
        last = any(each.stride(1) == 1 and each.stride(3) >= each.shape[1] for each in args[count - 2 : count])
        layout = torch.channels_last if last else torch.contiguous_format
        for each in args[:count]:
            self.names["large layout"] += each.numel() * each.itemsize > LARGE and not each.is_contiguous(
                memory_format=layout
            )
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            return torch.empty_like(out, memory_format=layout)
        return tuple(torch.empty_like(o, memory_format=layout) if o is not None and o.dim() == 4 else o for o in out)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("config", [UNET, UVIT, DIT], ids=["unet", "uvit", "dit"])
def test_no_image_is_copied_and_attention_is_flash(config: NetworkConfig, sharded: bool) -> None:
    with torch.device("meta"):
        network = build(config)
        network.to(torch.bfloat16) if sharded else place(network, torch.device("meta"))
        z = torch.empty(IMAGES, 3, config.image_size, config.image_size).contiguous(memory_format=torch.channels_last)
        with Kernels() as forward, Card():
            loss = network(z, torch.empty(IMAGES), torch.empty(IMAGES, dtype=torch.int64)).float().square().sum()
        with Kernels() as backward:
            loss.backward()
    flash = "_scaled_dot_product_flash_attention"
    assert forward.names[flash] == backward.names[f"{flash}_backward"] >= 2
    assert not {"native_group_norm", "_safe_softmax", "_softmax", "large layout"} & {*(+forward.names)}
    if isinstance(config, UNetConfig):  # tokens of the others are float32
        assert not {"large _to_copy", "large clone"} & {*forward.names}


@pytest.mark.parametrize("name", NAMES)
def test_a_presets_heads_are_narrow_enough_for_flash_attention(name: str) -> None:
    config = resolve({"preset": name}, preset_data(name)).network  # type: ignore[arg-type]
    if isinstance(config, UViTConfig | DiTConfig):
        assert config.width // config.heads <= FLASH_MOST
