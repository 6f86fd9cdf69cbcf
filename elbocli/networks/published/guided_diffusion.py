"""Import networks (UNetModel) of guided-diffusion, also called ADM.

Source: Dhariwal & Nichol 2021.
"""

import re

from torch import Tensor

from elbocli.errors import FormatError, UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.reading import reading
from elbocli.networks import published as formats
from elbocli.networks.published import TABLES, AttentionOrder, Imported, Source, shape_of, source_format
from elbocli.networks.unet import UNetConfig

TIME = "time_embed.0.weight"
LABELS = "label_emb.weight"
FIRST = "input_blocks.0.0.weight"
LAST = "out.2.weight"
# Checkpoints lack image size, attention heads and noise schedule; both tables list these for OpenAI's networks.
SIZES: dict[tuple[float, ...], int] = {
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
    (0.5, 1, 1, 2, 2, 4, 4): 512,
}
"""Relative widths of the U-Net's levels → image size in pixels."""
PUBLISHED = {
    (192, 3, 64): (AttentionOrder(outside=True), "t-squaredcos", 0.1),
    (256, 2, 128): (AttentionOrder(heads=4), "t-linear", 0.0),
    (256, 2, 256): (AttentionOrder(), "t-linear", 0.0),  # also LSUN's networks
    (256, 2, 512): (AttentionOrder(), "t-linear", 0.0),
}
"""(channels, blocks, size) of OpenAI's networks → (order of attention heads, noise schedule, dropout).

Source: guided-diffusion's model card and commands.
"""
ATTENDED = {32, 16, 8}


@source_format(
    "guided-diffusion",
    recognises=lambda source: any({TIME, FIRST} <= set(names) for names in formats.entries(source.tree).values()),
    takes=(*formats.STATE_DICT_OPTIONS, "size", "noise_input", "attention"),
)
def guided_diffusion(source: Source, options: ImportOptions) -> Imported:
    where = source.path
    tensors, averaged, _ = formats.state_dict(source, options)
    width, channels = shape_of(tensors, TIME)
    image_channels = shape_of(tensors, FIRST)[1]
    outputs = shape_of(tensors, LAST)[0]
    if image_channels == outputs == 6:
        raise FormatError(f"{where}: a super-resolution network, with a smaller image as input; elbo can't import such networks")
    parts = [re.fullmatch(r"output_blocks\.(\d+)\.(\d)\.in_layers\.0\.weight", name) for name in tensors]
    places = sorted((int(match[1]), int(match[2])) for match in parts if match)
    deep = 1 + sum(place > 0 for _, place in places)
    blocks = len({index for index, _ in places}) // deep - 1
    starts = [f"input_blocks.{1 + depth * (blocks + 1)}" for depth in range(deep)]
    levels = tuple(shape_of(tensors, f"{name}.0.in_layers.2.weight")[0] / channels for name in starts)
    attended = {depth for depth, name in enumerate(starts) if f"{name}.1.qkv.weight" in tensors}
    usual = SIZES.get(levels, 0)
    published = attended == {depth for depth in range(deep) if usual >> depth in ATTENDED}
    known = PUBLISHED.get((channels, blocks, usual)) if published else None
    size = options.size or usual
    if not size:
        raise UsageError(f"{where}: the shapes of weights don't show the image size; add --size PIXELS")
    if not known and not options.attention:
        raise UsageError(
            f"{where}: the shapes of weights don't show the attention heads; add --attention heads=N (num_heads) "
            "or --attention width=N (num_head_channels), with ',new' after N for use_new_attention_order"
        )
    attention, code, dropout = known or (AttentionOrder(), "t-linear", 0.0)
    if options.attention:
        attention = formats.parse_attention(options.attention)
    if not known and not options.noise_input:
        source.notes.append(
            f"{where}: noise schedule unknown: taken as linear with 1000 timesteps; give another with --noise-input"
        )
    code = options.noise_input or code
    with reading(where):
        config = UNetConfig(
            image_size=size,
            image_channels=image_channels,
            num_classes=len(tensors.get(LABELS, ())),
            channels=channels,
            levels=levels,
            blocks=blocks,
            attention=tuple(size >> depth for depth in sorted(attended)),
            heads=attention.heads,
            head_width=attention.width,
            groups=32,
            embedding=0 if width == 4 * channels else width,
            code=code,
            variance=outputs == 2 * image_channels,
            dropout=dropout,
        )
    blocks_of = {
        "down": [f"input_blocks.{index}.0" for index in range(1, deep * (blocks + 1))],
        "middle": ["middle_block.0", "middle_block.2"],
        "up": [f"output_blocks.{index}.{place}" for index, place in places],
    }
    attention_of = {way: [f"{name.rpartition('.')[0]}.1" for name in each] for way, each in blocks_of.items()}
    names = TABLES["guided-diffusion"]
    modules = formats.block_modules(blocks_of, names["block"]) | formats.block_modules(attention_of, names["attention"])

    def convert_layout(name: str, tensor: Tensor) -> Tensor:
        if name.endswith((".attention.qkv.weight", ".attention.out.weight")):
            tensor = tensor.unsqueeze(3)
        if ".attention.qkv." not in name or attention.outside:
            return tensor
        return tensor.unflatten(0, (attention.heads_of(len(tensor) // 3), 3, -1)).transpose(0, 1).flatten(0, 2)

    weights = formats.fitted(tensors, config, source, names["network"] | modules, convert_layout)
    averaged = averaged or re.match(r"model\d+$", where.stem) is None
    return Imported(config, weights, formats.timestep_settings(code, source, options), averaged)
