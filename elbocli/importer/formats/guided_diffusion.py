"""guided-diffusion's checkpoints, state dicts of its UNetModel, known as ADM: 64 to 512 pixels, and LSUN.

Source: Dhariwal & Nichol 2021. Names and shapes tell the network but for the size of its images, its heads and its noise
schedule: those of the published ones are known by their widths, those of others a user says.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import Tensor

from elbocli.errors import FormatError, UsageError
from elbocli.files.reading import reading
from elbocli.importer.formats import (
    NAMED,
    AttentionOrder,
    Imported,
    ImportOptions,
    Source,
    block_modules,
    entries,
    fitted,
    parse_attention,
    shape_of,
    source_format,
    state_dict,
    timestep_settings,
)
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


class Published(NamedTuple):
    """Facts of a network that OpenAI published, which shapes don't tell. code: the level code of its timesteps."""

    attention: AttentionOrder | None = None
    code: str = "t-linear"
    dropout: float = 0.0


PUBLISHED = {
    (192, 3, 64): Published(AttentionOrder(outside=True), "t-squaredcos", 0.1),
    (256, 2, 128): Published(AttentionOrder(heads=4)),
    (256, 2, 256): Published(AttentionOrder()),
    (256, 2, 512): Published(AttentionOrder()),
}
"""(channels, blocks, size) → what model card and commands say. That of 256 pixels is also LSUN's."""
OTHER = Published()
ATTENDED = {32, 16, 8}
MODULES = {
    "conditioning.first": "time_embed.0",
    "conditioning.second": "time_embed.2",
    "conditioning.classes": "label_emb",
    "first": "input_blocks.0.0",
    "norm": "out.0",
    "last": "out.2",
}
PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "scale_shift": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"attention.norm": "norm", "attention.qkv": "qkv", "attention.out": "proj_out"}
"""Modules outside of blocks, parts of a residual block, and of the attention behind one → its names."""


@source_format(
    "guided-diffusion",
    about="ADM's networks, 64x64_diffusion.pt to 512x512_diffusion.pt and lsun_*.pt, and others of its training script.",
    source="Dhariwal & Nichol 2021",
    licence=LICENCE,
    recognises=lambda source: any({TIME, FIRST} <= set(names) for names in entries(source.tree).values()),
    takes=(*NAMED, "size", "levels", "attention"),
)
def guided_diffusion(source: Source, options: ImportOptions) -> Imported:
    """Read the network off names and shapes, and complete it by what is known of the published ones."""
    where = source.path
    tensors, averaged, _ = state_dict(source, options)
    width, channels = shape_of(tensors, TIME, 2)
    image_channels, outputs = shape_of(tensors, FIRST, 4)[1], shape_of(tensors, LAST, 4)[0]
    parts = [re.fullmatch(r"output_blocks\.(\d+)\.(\d)\.in_layers\.0\.weight", name) for name in tensors]
    places = sorted((int(match[1]), int(match[2])) for match in parts if match)
    deep = 1 + sum(place > 0 for _, place in places)
    blocks = len({index for index, _ in places}) // deep - 1
    starts = [f"input_blocks.{1 + depth * (blocks + 1)}" for depth in range(deep)]
    levels = tuple(shape_of(tensors, f"{name}.0.in_layers.2.weight", 4)[0] / channels for name in starts)
    attended = {depth for depth, name in enumerate(starts) if any(key.startswith(f"{name}.1.") for key in tensors)}
    usual = SIZES.get(levels, 0)
    published = attended == {depth for depth in range(deep) if usual >> depth in ATTENDED}
    known = PUBLISHED.get((channels, blocks, usual), OTHER) if published else OTHER
    size = options.size or usual
    if not size:
        raise UsageError(f"{where}: its shapes don't say how large its images are; add --size")
    attention = parse_attention(options.attention) if options.attention else known.attention
    if attention is None:
        raise UsageError(
            f"{where}: its network is none of the published ones, and shapes don't say its heads; add --attention heads=N "
            "(num_heads) or width=N (num_head_channels), with ',new' for use_new_attention_order"
        )
    code = options.levels or known.code
    settings = timestep_settings(code, source, options)
    if known is OTHER and not options.levels:
        source.notes.append(
            f"{where}: nothing says its noise schedule: taken as linear with 1000 timesteps; say another by --levels"
        )
    if image_channels == outputs == 6:
        raise FormatError(
            f"{where}: its network enlarges images, and sees a smaller one as well; elbo has no such network"
        )
    with reading(where):
        config = UNetConfig(
            image_size=size,
            image_channels=image_channels,
            num_classes=shape_of(tensors, LABELS, 2)[0] if LABELS in tensors else 0,
            channels=channels,
            levels=levels,
            blocks=blocks,
            attention=tuple(size >> depth for depth in sorted(attended)),
            heads=attention.heads,
            head_width=attention.width,
            groups=GROUPS,
            embedding=0 if width == 4 * channels else width,
            code=code,
            variance=outputs == 2 * image_channels,
            dropout=known.dropout,
        )
    names = {
        "down": [f"input_blocks.{index}.0" for index in range(1, deep * (blocks + 1))],
        "middle": ["middle_block.0", "middle_block.2"],
        "up": [f"output_blocks.{index}.{place}" for index, place in places],
    }
    beside = {way: [f"{name.rpartition('.')[0]}.1" for name in each] for way, each in names.items()}
    modules = MODULES | block_modules(names, PARTS) | block_modules(beside, ATTENTION)

    def turned(name: str, tensor: Tensor) -> Tensor:
        if name.endswith((".attention.qkv.weight", ".attention.out.weight")):
            tensor = tensor.unsqueeze(3)
        if ".attention.qkv." not in name or attention.outside:
            return tensor
        return tensor.unflatten(0, (attention.heads_of(len(tensor) // 3), 3, -1)).transpose(0, 1).flatten(0, 2)

    weights = fitted(tensors, config, source, modules, turned)
    averaged = averaged or re.match(r"model\d+$", where.stem) is None
    return Imported(config, weights, settings, averaged, source.notes)
