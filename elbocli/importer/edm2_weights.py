"""Weights of EDM2's U-Net by the names of elbo's, the network that they tell, and what else its objects must agree on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files.pickles import module_state
from elbocli.files.reading import reading
from elbocli.importer.edm_family import BLOCK, counted
from elbocli.importer.unet_weights import shape_of, taken
from elbocli.nn.networks import edm2 as ours
from elbocli.nn.networks.blocks import heads_of
from elbocli.nn.networks.edm2 import EDM2Config

OUTSIDE = {
    "conditioning.frequencies": "emb_fourier.freqs",
    "conditioning.phases": "emb_fourier.phases",
    "conditioning.level.weight": "emb_noise.weight",
    "conditioning.classes.weight": "emb_label.weight",
    "last.weight": "out_conv.weight",
    "gain": "out_gain",
}
"""Weights outside all blocks → EDM2's names."""
PARTS = {
    "gain": "emb_gain",
    "conv1.weight": "conv_res0.weight",
    "scale.weight": "emb_linear.weight",
    "conv2.weight": "conv_res1.weight",
    "skip.weight": "conv_skip.weight",
    "attention.qkv.weight": "attn_qkv.weight",
    "attention.out.weight": "attn_proj.weight",
}
"""Weights of a block → EDM2's names."""
QKV = ".attention.qkv.weight"
CONSTANTS: dict[str, Any] = {
    "label_balance": ours.CLASS,
    "concat_balance": ours.JOINED,
    "res_balance": ours.RESIDUAL,
    "attn_balance": ours.ATTENTION,
    "clip_act": ours.CLIP,
    "resample_filter": [1, 1],
}
"""Attributes of EDM2's objects that elbo's network has as constants."""


def _parts(module: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names and attributes of a pickled network, its U-Net, and the blocks of that."""
    yield "", module_state(module)
    inner = module_state(module)["_modules"].get("unet")
    unet = module if inner is None else inner
    yield "unet", module_state(unet)
    for way in ("enc", "dec"):
        blocks = module_state(unet)["_modules"].get(way)
        if blocks is not None:
            yield from (
                (f"{way}.{name}", module_state(each)) for name, each in module_state(blocks)["_modules"].items()
            )


def check_constants(module: Any, where: Path) -> float:
    """Raise FormatError for a network with other constants than elbo's. Returns its dropout."""
    dropout = 0.0
    for name, attributes in _parts(module):
        for key, wanted in CONSTANTS.items():
            found = attributes.get(key, wanted)
            if (list(found) if isinstance(found, tuple) else found) != wanted:
                raise FormatError(
                    f"{where}: {name} has {key} {found}, elbo's network has {wanted}; it can't be imported"
                )
        channels, heads = attributes.get("out_channels"), attributes.get("num_heads")
        if type(channels) is int and type(heads) is int and heads and heads != heads_of(channels):
            raise FormatError(
                f"{where}: {name} has {heads} heads for {channels} channels, elbo's network has {heads_of(channels)}; it "
                "can't be imported"
            )
        if "res_balance" in attributes and type(attributes.get("dropout")) in (int, float):
            dropout = max(dropout, float(attributes["dropout"]))
    return dropout


def config_of_names(tensors: Mapping[str, Tensor], dropout: float, where: Path) -> tuple[EDM2Config, list[int]]:
    """(network, sizes from the largest) that names and shapes tell. Raises FormatError where they don't fit each other."""
    sides = sorted({int(match[2]) for match in map(BLOCK.match, tensors) if match}, reverse=True)
    size = max(sides, default=0)
    first = shape_of(tensors, f"enc.{size}x{size}_conv.weight", 4, where)
    widths = [shape_of(tensors, f"enc.{side}x{side}_block0.conv_res0.weight", 4, where)[0] for side in sides]
    if sides != [size >> depth for depth in range(len(sides))]:
        raise FormatError(f"{where}: has blocks of the sizes {sides}, each of which should be half the one before")
    channels = math.gcd(*widths)
    with reading(where):
        config = EDM2Config(
            image_size=size,
            image_channels=first[1] - 1,
            num_classes=shape_of(tensors, "emb_label.weight", 2, where)[1] if "emb_label.weight" in tensors else 0,
            channels=channels,
            levels=tuple(width // channels for width in widths),
            blocks=sum(re.fullmatch(rf"enc\.{size}x{size}_block\d+\.emb_gain", name) is not None for name in tensors),
            attention=tuple(side for side in sides if f"enc.{side}x{side}_block0.attn_qkv.weight" in tensors),
            dropout=dropout,
        )
    return config, sides


def _names(config: EDM2Config, sides: list[int]) -> dict[str, str]:
    """Prefixes of elbo's names → EDM2's, for the first layer and the blocks."""
    below = sides[-1]
    down = [f"{side}x{side}_{name}" for side in sides for name in ("down", *counted(config.blocks))][1:]
    up = [f"{side}x{side}_{name}" for side in reversed(sides) for name in ("up", *counted(config.blocks + 1))][1:]
    placed = {f"down.{index}": f"enc.{name}" for index, name in enumerate(down)}
    placed |= {f"middle.{index}": f"dec.{below}x{below}_in{index}" for index in (0, 1)}
    placed |= {f"up.{index}": f"dec.{name}" for index, name in enumerate(up)}
    return {"first": f"enc.{sides[0]}x{sides[0]}_conv", **placed}


def by_our_names(tensors: Mapping[str, Tensor], config: EDM2Config, sides: list[int], where: Path) -> dict[str, Tensor]:
    """The weights by elbo's names. Raises FormatError in EDM2's words."""
    placed = _names(config, sides)

    def turned(name: str, tensor: Tensor) -> Tensor:
        if name.rpartition(".")[2] == "gain" and not tensor.dim():
            return tensor[None]
        if not name.endswith(QKV):
            return tensor
        # Theirs: heads, channels of a head, and q, k and v side by side; elbo's: q, k, v first.
        return tensor.unflatten(0, (heads_of(tensor.shape[1]), -1, 3)).movedim(2, 0).flatten(0, 2)

    return taken(tensors, config, lambda name: OUTSIDE.get(name) or _their_name(name, placed), where, turned)


def _their_name(name: str, placed: Mapping[str, str]) -> str:
    """EDM2's name of a weight of the first layer or of a block."""
    place = next(place for place in ("first", ".".join(name.split(".")[:2])) if name.startswith(f"{place}."))
    inner = name.removeprefix(f"{place}.")
    return f"{placed[place]}.{PARTS.get(inner, inner)}"
