"""EDM2's network and preconditioning, written from the paper with EDM2's module names; and files in EDM2's format.

Source: Karras et al. 2024, arXiv:2312.02696, appendix B and config G. `.double()` makes a network compute in float64.
"""

import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from peers.edm_files import Persistent, object_of, persistence
from peers.parts import RESIZE, Tensors, attention, unet_blocks
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 64
"""Least number of channels of a head of attention."""


def scaled(x: Tensor, along: Sequence[int]) -> Tensor:
    """x over its root mean square, to which EDM2 adds a ten-thousandth."""
    return x / (1e-4 + x.pow(2).mean(dim=tuple(along), keepdim=True).sqrt())


def activated(x: Tensor) -> Tensor:
    """SiLU, divided by what it leaves of a normal's magnitude."""
    return F.silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Magnitude-preserving sum."""
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


class MPConv(Persistent, nn.Module):
    """A convolution, or a matrix, each of whose outputs has weights at unit root mean square, over the root of their number."""

    def __init__(self, before: int, after: int, kernel: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(after, before, *[kernel, kernel] if kernel else []))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight = scaled(self.weight, range(1, self.weight.dim())) * gain / math.sqrt(self.weight[0].numel())
        return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, padding="same")


class MPFourier(Persistent, nn.Module):
    """Cosines of a number at random frequencies and phases."""

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(count))
        self.register_buffer("phases", 2 * math.pi * torch.rand(count))

    def forward(self, noise: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(torch.outer(noise, self.freqs) + self.phases)


class Block(Persistent, nn.Module):
    """One block. way: 'down' halves the image, 'up' doubles it, others keep it."""

    def __init__(self, before: int, after: int, width: int, encoder: bool, attends: bool, way: str):
        super().__init__()
        self.way = way if way in RESIZE else ""
        self.encoder = encoder
        self.out_channels = after
        self.res_balance = 0.3
        self.attn_balance = 0.3
        self.clip_act = 256
        self.dropout = 0.1
        self.resample_filter = [1, 1]
        self.emb_gain = nn.Parameter(torch.empty([]))
        self.conv_res0 = MPConv(after if encoder else before, after, 3)
        self.emb_linear = MPConv(width, after)
        self.conv_res1 = MPConv(after, after, 3)
        self.conv_skip = MPConv(before, after, 1) if before != after else None
        self.num_heads = after // HEAD if attends else 0
        self.attn_qkv = MPConv(after, 3 * after, 1) if self.num_heads else None
        self.attn_proj = MPConv(after, after, 1) if self.num_heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = RESIZE[self.way](x)
        skipped = x if self.conv_skip is None else self.conv_skip(x)
        if self.encoder:
            x = skipped = scaled(skipped, [1])
        gain = self.emb_linear(embedding, self.emb_gain) + 1
        h = self.conv_res0(activated(x)) * gain[..., None, None]
        x = mixed(skipped, self.conv_res1(activated(h)), 0.3)
        if self.attn_qkv is not None and self.attn_proj is not None:
            qkv = self.attn_qkv(x).flatten(2).unflatten(1, (self.num_heads, -1, 3))
            x = mixed(x, self.attn_proj(attention(*scaled(qkv, [2]).unbind(3)).view_as(x)), 0.3)
        return x.clamp(min=-256, max=256)


class UNet(Persistent, nn.Module):
    """The network. Levels narrower than a head have no attention."""

    def __init__(
        self,
        size: int = 8,
        channels: int = 64,
        levels: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (4,),
        classes: int = 0,
        image_channels: int = 3,
    ):
        super().__init__()
        self.label_balance = self.concat_balance = 0.5
        wide = [channels * level for level in levels]
        width = max(wide)
        self.out_gain = nn.Parameter(torch.empty([]))
        self.emb_fourier = MPFourier(wide[0])
        self.emb_noise = MPConv(wide[0], width)
        self.emb_label = MPConv(classes, width) if classes else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        for name, before, after, attends in unet_blocks(size, wide, blocks, attention):
            side, _, short = name.partition(".")
            way = name.rpartition("_")[2]
            block = Block(before, after, width, side == "enc", attends, way) if before else MPConv(image_channels + 1, after, 3)
            getattr(self, side)[short] = block
        self.out_conv = MPConv(after, image_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """F(x, c_noise [B], one-hot labels [B, classes], or zeros for none)."""
        embedding = self.emb_noise(self.emb_fourier(noise))
        if labels is not None and self.emb_label is not None:
            one_hot = labels.to(embedding) * math.sqrt(labels.shape[1])
            embedding = mixed(embedding, self.emb_label(one_hot), 0.5)
        embedding = activated(embedding)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for block in self.enc.values():
            x = block(x) if isinstance(block, MPConv) else block(x, embedding)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                skip = skips.pop()
                one = x.shape[1]
                other = skip.shape[1]
                # Both shares are a half: each side gets half of the sum of squares.
                x = torch.cat([x * math.sqrt((one + other) / 2 / one), skip * math.sqrt((one + other) / 2 / other)], 1)
            x = block(x, embedding)
        return self.out_conv(x, self.out_gain)


class Precond(Persistent, nn.Module):
    """D(y; σ), y = x + σ ε: preconditioning of F, which is told ln(σ)/4. shape: that of the network."""

    def __init__(self, **shape: Any):
        super().__init__()
        self.sigma_data = 0.5
        self.use_fp16 = True
        self.unet = UNet(**shape)
        self.logvar_fourier = MPFourier(128)
        self.logvar_linear = MPConv(128, 1)

    def forward(self, y: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Denoise y [B, C, H, W] of noise σ [B]; labels [B, classes] or None."""
        s = sigma[:, None, None, None]
        total = s**2 + self.sigma_data**2
        out = self.unet(y / total.sqrt(), sigma.log() / 4, labels)
        return y * self.sigma_data**2 / total + out * s * self.sigma_data / total.sqrt()


# Files


def encoder(name: str, **more: Any) -> Any:
    """An encoder of images."""
    return object_of(name, **{"_init_args": (), "_init_kwargs": {}, **more})


def vae_encoder() -> Any:
    """The encoder of latents, with numpy's arrays as it holds them."""
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    bias = -np.float32([5.81, 3.25, 0.12, -2.15]) * scale
    known = {"vae_name": "stabilityai/sd-vae-ft-mse", "scale": scale, "bias": bias, "batch_size": 8, "_vae": None}
    return encoder("StabilityVAEEncoder", **known)


def write_snapshot(path: Path, network: Precond, **beside: Any) -> Path:
    """Write a network pickle: an EasyDict of encoder, data, loss and network. beside: what to put in their place."""
    content = {
        "encoder": encoder("StandardRGBEncoder"),
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip", "use_labels": True},
        "loss_fn": object_of("EDM2Loss", P_mean=-0.8, P_std=1.6, sigma_data=0.5),
        **beside,
        "ema": network,
    }
    package = ModuleType("dnnlib")
    module = ModuleType("dnnlib.util")
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    module.EasyDict = easy  # type: ignore[attr-defined]
    sys.modules |= {"dnnlib": package, "dnnlib.util": module}
    try:
        with persistence(), path.open("wb") as file:
            pickle.dump(easy(content), file)
    finally:
        del sys.modules["dnnlib"], sys.modules["dnnlib.util"]
    return path


def write_state(path: Path, last: Tensors, averages: Mapping[float, Tensors]) -> Path:
    """Write training-state-*.pt, in which all is state dicts."""
    adam = torch.optim.Adam([nn.Parameter(torch.ones(3))])
    torch.save(
        {
            "state": {"cur_nimg": 2048, "total_elapsed_time": 1.5},
            "net": last,
            "loss_fn": {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}},
            "optimizer": adam.state_dict(),
            "ema": {"stds": list(averages), "emas": list(averages.values())},
        },
        path,
    )
    return path
