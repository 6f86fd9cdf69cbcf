"""Group norm with what follows it, scale and shift and SiLU, in few passes over the image.

CUDA's own kernel takes and gives images with channels first, and autocast has it work in float32: what follows is then
read and written in four bytes, and copied into the layout of convolutions and back. This one keeps the image's
precision, and channels last. Values per channel are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """x [B, C, H, W], scale and shift [B, C] → silu(norm(x)·(1 + scale) + shift); scale and shift, or SiLU, may be left out.

    fused: whether by the function below, else by torch's; None is torch's on a CPU alone.
    """

    fused: bool | None = None

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = False
    ) -> Tensor:
        if not (x.device.type != "cpu" if self.fused is None else self.fused):
            h = super().forward(x)
            if scale is not None and shift is not None:
                h = torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None] + 1)
            return F.silu(h) if silu else h
        wide = torch.promote_types(x.dtype, torch.float32)
        gain, bias = self.weight.to(wide)[None], self.bias.to(wide)[None]
        if scale is not None and shift is not None:
            scale = scale.to(wide) + 1
            gain, bias = gain * scale, torch.addcmul(shift.to(wide), bias, scale)
        pixels = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        gain, bias = (each.unflatten(1, (self.num_groups, -1)) for each in (gain, bias))
        out = _Normed.apply(pixels.flatten(1, 2), gain, bias, self.eps, silu)
        return out.view_as(pixels).permute(0, 3, 1, 2)


class _Normed(torch.autograd.Function):
    """x [B, pixels, C], gain and bias [B or 1, groups, C/groups] → silu(x̂·gain + bias), x̂ normed in each group.

    The backward pass keeps x and a few numbers per channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
        wide, groups = gain.dtype, gain.shape[1:]
        if x.dtype == wide:
            variance, mean = torch.var_mean(x, 1, correction=0)
        else:
            # In float32 without a copy of x. Where a large mean cancels here, rounding x has lost more.
            mean = x.mean(1, dtype=wide)
            variance = torch.linalg.vector_norm(x, dim=1, dtype=wide).square() / x.shape[1] - mean.square()
        spread, mean = torch.var_mean(mean.unflatten(1, groups), 2, correction=0, keepdim=True)
        variance = variance.unflatten(1, groups).mean(2, keepdim=True) + spread
        inverse = (variance.clamp(min=0) + eps).rsqrt()
        factor = gain * inverse
        offset = torch.addcmul(bias, factor, mean, value=-1)
        ctx.save_for_backward(x, gain, mean, inverse, factor, offset)
        ctx.silu = silu
        out = _affine(x, factor, offset, torch.empty_like(x))
        return F.silu(out, inplace=True) if silu else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, inverse, factor, offset = ctx.saved_tensors
        wide, groups, count = gain.dtype, gain.shape[1:], x.shape[1] * gain.shape[2]
        out = torch.empty_like(x)
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad, _affine(x, factor, offset, out))
        of_bias = grad.sum(1, dtype=wide).unflatten(1, groups)
        of_factor = torch.mul(grad, x, out=out).sum(1, dtype=wide).unflatten(1, groups)
        of_gain = inverse * torch.addcmul(of_factor, mean, of_bias, value=-1)
        # Of x: inverse·(gain·grad − m − x̂·n), m the mean in the group of gain·grad, and n of gain·grad·x̂.
        along = inverse.square() * (gain * of_gain).sum(2, keepdim=True) / -count
        beside = inverse * (gain * of_bias).sum(2, keepdim=True) / -count
        beside = torch.addcmul(beside, along, mean, value=-1)
        out = _affine(x, along.expand_as(factor), beside.expand_as(factor), out)
        out = torch.addcmul(out, grad, factor.flatten(1)[:, None], out=out)
        return out, of_gain.sum_to_size(gain.shape), of_bias.sum_to_size(gain.shape), None, None


def _affine(x: Tensor, factor: Tensor, offset: Tensor, out: Tensor) -> Tensor:
    """Write x·factor + offset, rounded only then. factor, offset: for each channel of each image."""
    return torch.addcmul(offset.flatten(1)[:, None], x, factor.flatten(1)[:, None], out=out)
