"""Group norm with scale, shift and SiLU: torch's on a CPU; elsewhere one that stays in the image's precision and layout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elbocli.nn.networks.unet import GroupNorm

GROUPS, CHANNELS = 4, 24
EVERY = pytest.mark.parametrize(("scaled", "silu"), [(False, False), (False, True), (True, False), (True, True)])


def norm(dtype: torch.dtype = torch.float64, fused: bool | None = True) -> GroupNorm:
    torch.manual_seed(0)
    layer = GroupNorm(GROUPS, CHANNELS).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.fused = fused
    return layer


def inputs(scaled: bool, dtype: torch.dtype = torch.float64, mean: float = 0.5) -> list[Tensor | None]:
    """An image in channels last, and its scale and shift."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(3, CHANNELS, 6, 4, generator=draw, dtype=torch.float64) + mean
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    rest = [torch.randn(3, CHANNELS, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2)]
    return [x.requires_grad_(), *(each.requires_grad_() if scaled else None for each in rest)]


def plain(layer: GroupNorm, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    """The same by torch's functions."""
    h = F.group_norm(x, GROUPS, layer.weight, layer.bias, layer.eps)
    if scale is not None and shift is not None:
        h = torch.addcmul(shift[..., None, None], h, scale[..., None, None] + 1)
    return F.silu(h) if silu else h


def with_gradients(out: Tensor, *of: Tensor | None) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad(out, [each for each in of if each is not None], weight)]


@EVERY
def test_on_a_cpu_it_is_torchs_to_the_bit(scaled: bool, silu: bool) -> None:
    layer, (x, *rest) = norm(torch.float32, fused=None), inputs(scaled, torch.float32)
    assert torch.equal(layer(x, *rest, silu), plain(layer, x, *rest, silu=silu))


@EVERY
def test_values_and_gradients_are_torchs(scaled: bool, silu: bool) -> None:
    layer, (x, *rest) = norm(), inputs(scaled)
    both = [
        with_gradients(out, x, *rest, *layer.parameters())
        for out in (layer(x, *rest, silu), plain(layer, x, *rest, silu=silu))
    ]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@EVERY
def test_gradients_are_those_of_the_values(scaled: bool, silu: bool) -> None:
    layer, (x, *rest) = norm(), inputs(scaled)
    given = [each for each in (x, *rest) if each is not None]
    assert torch.autograd.gradcheck(lambda *given: layer(*(*given, None, None)[:3], silu), given)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mean", [0.5, 30.0])
def test_only_what_is_written_is_rounded(scaled: bool, silu: bool, dtype: torch.dtype, mean: float) -> None:
    """Statistics, and what there is one of for a channel, are float32: errors are those of rounding an image."""
    layer, (x, *rest) = norm(torch.float32), inputs(scaled, dtype, mean)
    ours = with_gradients(layer(x, *rest, silu), x, *rest, *layer.parameters())
    exact = [each if each is None else each.detach().double().requires_grad_() for each in (x, *rest)]
    wide = copy.deepcopy(layer).double()
    theirs = with_gradients(plain(wide, *exact, silu=silu), *exact, *wide.parameters())
    assert ours[0].dtype == ours[1].dtype == dtype
    errors = [
        float((one - other).detach().norm() / other.detach().norm()) for one, other in zip(ours, theirs, strict=True)
    ]
    roundings = [error / torch.finfo(dtype).eps for error in errors]
    few = 1 if dtype != torch.float32 else 10
    assert max(roundings[:2]) < few
    assert max(roundings[2:]) < few * max(1, 0.4 * mean)  # sums of a product, in which a large mean cancels


class Kernels(TorchDispatchMode):
    """Notes what each operation writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[str, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(each) for each in tree_leaves(args) if isinstance(each, Tensor)}
        self.written += [
            (str(func), each) for each in tree_leaves(out) if isinstance(each, Tensor) and id(each) not in given
        ]
        return out


@EVERY
def test_no_image_is_widened_or_laid_out_anew(scaled: bool, silu: bool) -> None:
    layer, (x, *rest) = norm(torch.float32), inputs(scaled, torch.bfloat16)
    with Kernels() as kernels:
        layer(x, *rest, silu).sum().backward()
    images = [(name, each) for name, each in kernels.written if each.numel() >= x.numel()]
    assert len(images) > 5 and {each.dtype for _, each in images} == {torch.bfloat16}
    assert not [name for name, _ in images if "clone" in name or "copy" in name]


def test_images_come_out_in_channels_last_whatever_they_came_in() -> None:
    layer, (x, *_) = norm(), inputs(False)
    first = x.detach().contiguous()
    out = layer(first)
    assert out.is_contiguous(memory_format=torch.channels_last) and torch.equal(out, layer(x))


def test_nothing_but_the_image_is_kept() -> None:
    layer, (x, *rest) = norm(torch.float32), inputs(True, torch.bfloat16)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: kept.setdefault(each.data_ptr(), each), lambda each: each
    ):
        layer(x, *rest, silu=True)
    assert [each.data_ptr() for each in kept.values() if each.numel() >= x.numel()] == [x.data_ptr()]


def test_it_is_used_where_images_are_not_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors stand for any device."""
    torchs: list[torch.Tensor] = []
    monkeypatch.setattr(torch.nn.GroupNorm, "forward", lambda self, x: torchs.append(x) or x)
    layer = norm(torch.float32, fused=None).to("meta")
    x = torch.empty(2, CHANNELS, 4, 4, device="meta").contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert not torchs
    layer.fused = False
    layer(x)
    assert torchs


def test_a_checkpoint_has_the_names_of_torchs() -> None:
    assert list(GroupNorm(2, 4).state_dict()) == list(torch.nn.GroupNorm(2, 4).state_dict())
