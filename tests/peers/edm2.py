"""EDM2's network and preconditioning, stated again over a dict of tensors with EDM2's names; and files as it writes them.

Source: Karras et al. 2024, arXiv:2312.02696, appendix B and config G. A network is all in its names: sizes, levels,
blocks, attention. All is computed in float64.
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
from peers.edm_files import made_class, persistence
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = dict[str, Tensor]


def made(
    size: int = 8,
    channels: int = 64,
    levels: Sequence[int] = (1, 2),
    blocks: int = 1,
    attention: Sequence[int] = (4,),
    classes: int = 0,
    image_channels: int = 3,
    seed: int = 0,
    weigh: bool = True,
) -> Tensors:
    """Random tensors, none of them zero, of Precond of that shape, in the order of its state dict.

    Weights have lengths of all sizes, as averages do. weigh: else they are without memory.
    """
    draw, out = torch.Generator().manual_seed(seed), Tensors()

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) if weigh else torch.empty(shape, device="meta")

    def put(name: str, *shape: int) -> None:
        out[f"{name}.weight"] = random(*shape) * (0.5 + random(shape[0], *[1] * (len(shape) - 1)).abs())

    def waves(name: str, count: int) -> None:
        out[f"{name}.freqs"] = 2 * math.pi * random(count)
        out[f"{name}.phases"] = 2 * math.pi * random(count).abs().clamp(max=1)

    def put_block(name: str, before: int, after: int, encoder: bool, attends: bool = False) -> None:
        out[f"unet.{name}.emb_gain"] = 0.5 * random(1)[0]
        put(f"unet.{name}.conv_res0", after, after if encoder else before, 3, 3)
        put(f"unet.{name}.emb_linear", after, width)
        put(f"unet.{name}.conv_res1", after, after, 3, 3)
        if before != after:
            put(f"unet.{name}.conv_skip", after, before, 1, 1)
        if attends and after >= 64:
            put(f"unet.{name}.attn_qkv", 3 * after, after, 1, 1)
            put(f"unet.{name}.attn_proj", after, after, 1, 1)

    wide = [channels * level for level in levels]
    width, now = max(wide), wide[0]
    out["unet.out_gain"] = random(1)[0] + 2
    waves("unet.emb_fourier", now)
    put("unet.emb_noise", width, now)
    if classes:
        put("unet.emb_label", width, classes)
    put(f"unet.enc.{size}x{size}_conv", now, image_channels + 1, 3, 3)
    kept = [now]
    for depth, goal in enumerate(wide):
        side = size >> depth
        if depth:
            put_block(f"enc.{side}x{side}_down", now, now, True)
            kept.append(now)
        for index in range(blocks):
            put_block(f"enc.{side}x{side}_block{index}", now, goal, True, side in attention)
            now = goal
            kept.append(now)
    for depth, goal in reversed(list(enumerate(wide))):
        side = size >> depth
        if depth == len(wide) - 1:
            put_block(f"dec.{side}x{side}_in0", now, now, False, True)
            put_block(f"dec.{side}x{side}_in1", now, now, False)
        else:
            put_block(f"dec.{side}x{side}_up", now, now, False)
        for index in range(blocks + 1):
            put_block(f"dec.{side}x{side}_block{index}", now + kept.pop(), goal, False, side in attention)
            now = goal
    put("unet.out_conv", image_channels, now, 3, 3)
    waves("logvar_fourier", 128)
    put("logvar_linear", 1, 128)
    return out


def scaled(x: Tensor, along: Sequence[int]) -> Tensor:
    """x over its root mean square, to which EDM2 adds a ten-thousandth."""
    return x / (1e-4 + x.pow(2).mean(dim=tuple(along), keepdim=True).sqrt())


def layer(tensors: Tensors, name: str, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """MPConv: each output's weights at unit root mean square, over the root of their number."""
    weight = tensors[f"{name}.weight"].double()
    weight = scaled(weight, range(1, weight.dim())) * gain / math.sqrt(weight[0].numel())
    if weight.dim() == 2:
        return torch.einsum("bi,oi->bo", x, weight)
    return F.conv2d(x, weight, padding="same")


def activated(x: Tensor) -> Tensor:
    """SiLU, divided by what it leaves of a normal's magnitude."""
    return x / (1 + torch.exp(-x)) / 0.596


def mixed(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Magnitude-preserving sum."""
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def told(tensors: Tensors, noise: Tensor, labels: Tensor | None) -> Tensor:
    """The embedding of c_noise [B] and one-hot labels [B, classes], or zeros for none."""
    angle = torch.outer(noise, tensors["unet.emb_fourier.freqs"].double()) + tensors["unet.emb_fourier.phases"].double()
    out = layer(tensors, "unet.emb_noise", math.sqrt(2) * torch.cos(angle))
    if labels is not None:
        one_hot = labels.double() * math.sqrt(labels.shape[1])
        out = mixed(out, layer(tensors, "unet.emb_label", one_hot), 0.5)
    return activated(out)


def block(tensors: Tensors, name: str, x: Tensor, embedding: Tensor) -> Tensor:
    """One block, by its full name: what kind it is, the name says."""
    encoder, kind = ".enc." in name, name.rpartition("_")[2]
    if kind == "down":
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5))
    if kind == "up":
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def skipped(h: Tensor) -> Tensor:
        return layer(tensors, f"{name}.conv_skip", h) if f"{name}.conv_skip.weight" in tensors else h

    if encoder:
        x = scaled(skipped(x), [1])
    h = layer(tensors, f"{name}.conv_res0", activated(x))
    gain = layer(tensors, f"{name}.emb_linear", embedding, tensors[f"{name}.emb_gain"].double()) + 1
    h = layer(tensors, f"{name}.conv_res1", activated(h * gain[..., None, None]))
    x = mixed(x if encoder else skipped(x), h, 0.3)
    if f"{name}.attn_qkv.weight" in tensors:
        count = x.shape[1]
        heads = count // 64
        q, k, v = scaled(layer(tensors, f"{name}.attn_qkv", x).reshape(len(x), heads, count // heads, 3, -1), [2]).unbind(3)
        share = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(count // heads), -1)
        h = torch.einsum("bhqk,bhck->bhcq", share, v).reshape(x.shape)
        x = mixed(x, layer(tensors, f"{name}.attn_proj", h), 0.3)
    return x.clamp(min=-256, max=256)


def network(tensors: Tensors, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
    """F(x, c_noise, labels)."""
    embedding = told(tensors, noise, labels)
    x = torch.cat([x.double(), torch.ones(len(x), 1, *x.shape[2:], dtype=torch.float64)], 1)
    names = dict.fromkeys(name.split(".")[2] for name in tensors if name.startswith("unet.enc."))
    kept: list[Tensor] = []
    for name in names:
        path = f"unet.enc.{name}"
        x = layer(tensors, path, x) if name.endswith("conv") else block(tensors, path, x, embedding)
        kept.append(x)
    for name in dict.fromkeys(name.split(".")[2] for name in tensors if name.startswith("unet.dec.")):
        if "_block" in name:
            skip = kept.pop()
            one, other = x.shape[1], skip.shape[1]
            # Both shares are a half: each side gets half of the sum of squares.
            x = torch.cat([x * math.sqrt((one + other) / 2 / one), skip * math.sqrt((one + other) / 2 / other)], 1)
        x = block(tensors, f"unet.dec.{name}", x, embedding)
    return layer(tensors, "unet.out_conv", x, tensors["unet.out_gain"].double())


def denoised(tensors: Tensors, y: Tensor, sigma: Tensor, labels: Tensor | None, sigma_data: float = 0.5) -> Tensor:
    """D(y; σ), y = x + σ ε: preconditioning of F, which is told ln(σ)/4. σ [B] float64; labels [B, classes] or None."""
    s = sigma[:, None, None, None]
    total = s**2 + sigma_data**2
    out = network(tensors, y.double() / total.sqrt(), sigma.log() / 4, labels)
    return y.double() * sigma_data**2 / total + out * s * sigma_data / total.sqrt()


# Files


def module_of(tensors: Mapping[str, Tensor], kind: str = "Precond", **attributes: Any) -> Any:
    """A module of EDM2's with these tensors, named as its classes are; what else its objects know is in attributes."""
    module = nn.ModuleDict() if kind == "ModuleDict" else made_class(kind)()
    usual: dict[str, dict[str, Any]] = {
        "Precond": {"sigma_data": 0.5, "use_fp16": True},
        "UNet": {"label_balance": 0.5, "concat_balance": 0.5},
        "Block": {"res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256, "dropout": 0.1, "resample_filter": [1, 1]},
    }
    vars(module).update({key: attributes.get(key, value) for key, value in usual.get(kind, {}).items()})
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            parts.setdefault(head, {})[rest] = tensor
        elif head in ("freqs", "phases"):
            module.register_buffer(head, tensor)
        else:
            module.register_parameter(head, nn.Parameter(tensor, requires_grad=False))
    for head, inner in parts.items():
        below = {"unet": "UNet", "enc": "ModuleDict", "dec": "ModuleDict"}.get(head)
        if below is None and head.endswith("_fourier"):
            below = "MPFourier"
        if below is None:
            below = "Block" if any("." in name for name in inner) else "MPConv"
        module.add_module(head, module_of(inner, below, **attributes))
    if kind == "Block":
        for name in ("conv_skip", "attn_qkv", "attn_proj"):
            if name not in parts:
                setattr(module, name, None)
    return module


def object_of(name: str, **attributes: Any) -> Any:
    """An object of one of its classes that is no module."""
    found = made_class(name, object)()
    vars(found).update({"_init_args": (), "_init_kwargs": {}, **attributes})
    return found


def vae_encoder() -> Any:
    """The encoder of latents, with numpy's arrays as it holds them."""
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    bias = -np.float32([5.81, 3.25, 0.12, -2.15]) * scale
    known = {"vae_name": "stabilityai/sd-vae-ft-mse", "scale": scale, "bias": bias, "batch_size": 8, "_vae": None}
    return object_of("StabilityVAEEncoder", **known)


def write_snapshot(path: Path, tensors: Tensors, half: bool = True, **beside: Any) -> Path:
    """Write a network pickle: an EasyDict of encoder, data, loss and network, whose tensors are of half precision.

    beside: what to put in their place, None for nothing; attributes of the network's objects under `attributes`.
    """
    attributes = beside.pop("attributes", {})
    held = {name: tensor.half() if half else tensor for name, tensor in tensors.items()}
    content = {
        "encoder": object_of("StandardRGBEncoder"),
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip", "use_labels": True},
        "loss_fn": object_of("EDM2Loss", P_mean=-0.8, P_std=1.6, sigma_data=0.5),
        **beside,
        "ema": module_of(held, **attributes),
    }
    package, module = ModuleType("dnnlib"), ModuleType("dnnlib.util")
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    module.EasyDict = easy  # type: ignore[attr-defined]
    sys.modules |= {"dnnlib": package, "dnnlib.util": module}
    try:
        with persistence(), path.open("wb") as file:
            pickle.dump(easy({key: value for key, value in content.items() if value is not None}), file)
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
