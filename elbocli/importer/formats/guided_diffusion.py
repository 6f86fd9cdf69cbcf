"""guided-diffusion's checkpoints, state dicts of its UNetModel, known as ADM: 64 to 512 pixels, and LSUN.

Source: Dhariwal & Nichol 2021. Names and shapes tell the network but for the size of its images, its heads and its noise
schedule: those of the published ones are known by their widths, those of others a user says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.files.reading import reading
from elbocli.importer.attention import AttentionOrder
from elbocli.importer.formats import (
    NAMED,
    Imported,
    ImportOptions,
    Source,
    entries,
    fitted,
    source_format,
    state_dict,
)
from elbocli.importer.levels import timestep_settings
from elbocli.importer.unet_weights import by_modules, shape_of, taken
from elbocli.nn.networks.unet import UNetConfig

LICENCE = "MIT, for the weights that OpenAI published"
GROUPS = 32
TIME, LABELS, FIRST, LAST = "time_embed.0.weight", "label_emb.weight", "input_blocks.0.0.weight", "out.2.weight"
SIZES: dict[tuple[float, ...], int] = {
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
    (0.5, 1, 1, 2, 2, 4, 4): 512,
}
"""Widths of the levels → the size of image that guided-diffusion chooses them for."""


@dataclass(frozen=True)
class Published:
    """A network that OpenAI published. code: the level code of its timesteps."""

    channels: int
    blocks: int
    size: int
    attention: AttentionOrder
    code: str = "t-linear"
    dropout: float = 0.0


PUBLISHED = (
    Published(192, 3, 64, AttentionOrder(outside=True), "t-squaredcos", 0.1),
    Published(256, 2, 128, AttentionOrder(heads=4)),
    Published(256, 2, 256, AttentionOrder()),
    Published(256, 2, 512, AttentionOrder()),
)
"""What its model card and commands say of them; that of 256 pixels is also LSUN's, and with classes or without."""
ATTENDED = {32, 16, 8}
PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "scale_shift": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
"""Parts of a residual block → its names."""
ATTENTION = {"attention.norm": "norm", "attention.qkv": "qkv", "attention.out": "proj_out"}


def _recognises(source: Source) -> bool:
    return any({TIME, FIRST} <= set(names) for names in entries(source.tree).values())


def _refuse_others(tensors: dict[str, Tensor], where: Path) -> None:
    """Raise FormatError for networks that share names with this one, and are others."""
    other = ""
    if any(".transformer_blocks." in name for name in tensors):
        other = "attends to text (latent diffusion's)"
    elif not any(name.startswith("output_blocks.") for name in tensors):
        other = "is a classifier of noised images"
    elif any(re.fullmatch(r"(in|out)put_blocks\.\d+\.\d\.(op|conv)\.weight", name) for name in tensors):
        other = "halves and doubles images by convolutions (improved-diffusion's), not by residual blocks"
    elif shape_of(tensors, FIRST, 4, where)[1] == shape_of(tensors, LAST, 4, where)[0] == 6:
        other = "enlarges images: it sees a smaller one as well"
    if other:
        raise FormatError(
            f"{where}: its network {other}, and elbo has no such network; export it as a program, see 'elbo import list'"
        )


def _published(channels: int, blocks: int, levels: tuple[float, ...], attended: set[int]) -> Published | None:
    """The published network of those widths, and attention so many halvings down."""
    for one in PUBLISHED:
        depths = {depth for depth in range(len(levels)) if one.size >> depth in ATTENDED}
        if (one.channels, one.blocks, one.size, depths) == (channels, blocks, SIZES.get(levels), attended):
            return one
    return None


@source_format(
    "guided-diffusion",
    about="ADM's networks, 64x64_diffusion.pt to 512x512_diffusion.pt and lsun_*.pt, and others of its training script.",
    source="Dhariwal & Nichol 2021",
    licence=LICENCE,
    recognises=_recognises,
    takes=(*NAMED, "size", "levels", "attention"),
)
def guided_diffusion(source: Source, options: ImportOptions) -> Imported:
    where, notes = source.path, list[str]()
    tensors, averaged = state_dict(source, options)
    _refuse_others(tensors, where)
    width, channels = shape_of(tensors, TIME, 2, where)
    first, last = (shape_of(tensors, name, 4, where) for name in (FIRST, LAST))
    outputs = [re.fullmatch(r"output_blocks\.(\d+)\.(\d)\.in_layers\.0\.weight", name) for name in tensors]
    places = sorted((int(match[1]), int(match[2])) for match in outputs if match)
    deep = 1 + sum(place > 0 for _, place in places)
    blocks = len({index for index, _ in places}) // deep - 1
    if blocks < 1:
        raise FormatError(
            f"{where}: has {len(places)} blocks on the way up at {deep} sizes, at least two belong to each"
        )
    levels, attended = list[float](), set[int]()
    for depth in range(deep):
        name = f"input_blocks.{1 + depth * (blocks + 1)}"
        levels.append(shape_of(tensors, f"{name}.0.in_layers.2.weight", 4, where)[0] / channels)
        attended |= {depth} if any(key.startswith(f"{name}.1.") for key in tensors) else set()
    known = _published(channels, blocks, tuple(levels), attended)
    size = options.size or SIZES.get(tuple(levels))
    if size is None:
        raise UsageError(f"{where}: its shapes don't say how large its images are; add --size")
    if options.attention:
        attention = AttentionOrder.parse(options.attention)
    elif known:
        attention = known.attention
    else:
        raise UsageError(
            f"{where}: its network is none of the published ones, and shapes don't say its heads; add --attention heads=N "
            "(num_heads) or width=N (num_head_channels), with ',new' for use_new_attention_order"
        )
    code = parse_level_code(options.levels or (known.code if known else "t-linear"))
    if not known and not options.levels:
        notes.append(
            f"{where}: nothing says its noise schedule: taken as linear with 1000 timesteps; say another by --levels"
        )
    if shape_of(tensors, "input_blocks.1.0.emb_layers.1.weight", 2, where)[0] != 2 * round(channels * levels[0]):
        raise FormatError(
            f"{where}: its blocks add what they are told of the noise (no use_scale_shift_norm); elbo's scale"
        )
    with reading(where):
        config = UNetConfig(
            image_size=size,
            image_channels=first[1],
            num_classes=shape_of(tensors, LABELS, 2, where)[0] if LABELS in tensors else 0,
            channels=channels,
            levels=tuple(levels),
            blocks=blocks,
            attention=tuple(size >> depth for depth in sorted(attended)),
            heads=attention.heads,
            head_width=attention.width,
            groups=GROUPS,
            embedding=0 if width == 4 * channels else width,
            code=code.spec,
            variance=last[0] == 2 * first[1],
            dropout=known.dropout if known else 0.0,
        )
    down = [f"input_blocks.{index}.0" for index in range(1, deep * (blocks + 1))]
    up = []
    for index in range(deep * (blocks + 1)):
        ups = [f"output_blocks.{at}.{place}" for at, place in places if at == index]
        up += ups or [f"output_blocks.{index}.0"]
    modules = {
        "conditioning.first": "time_embed.0",
        "conditioning.second": "time_embed.2",
        "conditioning.classes": "label_emb",
        "first": "input_blocks.0.0",
        "norm": "out.0",
        "last": "out.2",
    }
    residual = {"down": down, "middle": ["middle_block.0", "middle_block.2"], "up": up}
    for way, names in residual.items():
        for index, name in enumerate(names):
            modules |= {f"{way}.{index}.{part}": f"{name}.{theirs}" for part, theirs in PARTS.items()}
            beside = f"{name.rpartition('.')[0]}.1"
            modules |= {f"{way}.{index}.{part}": f"{beside}.{theirs}" for part, theirs in ATTENTION.items()}

    def turned(name: str, tensor: Tensor) -> Tensor:
        if ".attention." not in name or name.endswith(("norm.weight", "norm.bias", "out.bias")):
            return tensor
        tensor = tensor if name.endswith(".bias") else tensor.unsqueeze(3)
        if ".qkv." not in name or attention.outside:
            return tensor
        return tensor.unflatten(0, (attention.heads_of(len(tensor) // 3), 3, -1)).transpose(0, 1).flatten(0, 2)

    weights, more = fitted(taken(tensors, config, by_modules(modules), where, turned), config, where)
    settings: dict[str, Any] = {"prediction": "eps", "label_dropout": 0.0, **timestep_settings(code.spec)}
    data = {"image_size": size, "channels": first[1], "num_classes": config.num_classes}
    averaged = averaged or re.match(r"model\d+$", where.stem) is None
    return Imported(config, weights, settings, data, averaged, LICENCE, [*more, *notes])
