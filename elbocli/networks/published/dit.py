"""Import state dicts of DiT, SiT and REPA.

The weights have the same names and shapes; inputs → outputs differ:
DiT: one of 1000 timesteps, noisy x → ε.
SiT: t, where 1 is data, and t x + (1 − t) ε → x − ε.
REPA: t, where 1 is noise, and (1 − t) x + t ε → ε − x.
Source: Peebles & Xie 2023; Ma et al. 2024; Yu et al. 2025.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from elbocli.errors import FormatError, UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.reading import reading
from elbocli.files.records import JSON
from elbocli.networks import published as formats
from elbocli.networks.published import TABLES, AttentionOrder, Imported, Settings, Source, shape_of, source_format
from elbocli.networks.transformers import DiTConfig, positions

PATCH = "x_embedder.proj.weight"
POSITIONS = "pos_embed"
LAST = "final_layer.linear.weight"
TABLE = "y_embedder.embedding_table.weight"
PROJECTORS = "projectors."
# Weights by which the network is recognised.
MARKS = {PATCH, POSITIONS, LAST, "blocks.0.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.weight"}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # width of DiT-S, B, L and XL → number of attention heads
# Settings of a flow network trained on all times; times below 0.0006 and above 0.9994 lie outside the range.
FLOW: Settings = {"prediction": "u-path", "weighting": "fm-ot", "schedule": "fm-ot", "logsnr_min": -15.0, "logsnr_max": 15.0}
CODES = {"dit": "t-linear", "sit": "flow-reversed", "repa": "flow"}  # format → form of the networks' noise-level input


def _is(format: str, source: Source) -> bool:
    for names in formats.entries(source.tree).values():
        if set(names) >= MARKS:
            return format == ("repa" if any(name.startswith(PROJECTORS) for name in names) else "dit")
    return False


def grid_side(tensors: Mapping[str, Tensor], width: int) -> int:
    """Return the number of tokens along a side of the image. Raises FormatError unless `pos_embed` is DiT's."""
    side = math.isqrt(shape_of(tensors, POSITIONS)[1])
    places = tensors[POSITIONS][0].double()
    wanted = positions(side, width, torch.device("cpu")).double()
    most = 1e-5 if tensors[POSITIONS].dtype in (torch.float32, torch.float64) else 1e-2
    if places.shape != wanted.shape or not torch.allclose(places, wanted, rtol=0, atol=most):
        raise FormatError(f"{POSITIONS} isn't DiT's sine-cosine embedding of a square grid; elbo can't import such a network")
    return side


def _translate(its_code: str, source: Source, options: ImportOptions) -> Imported:
    where = source.path
    code = options.noise_input or its_code
    flow = its_code.startswith("flow")
    settings = FLOW if flow else formats.timestep_settings(code, source, options)
    if not flow:
        source.notes.append("read as DiT's; files of SiT and REPA look alike: for these, add --format sit or --format repa")
    tensors, averaged, _ = formats.state_dict(source, options)
    width, channels, patch, _ = shape_of(tensors, PATCH)
    side = grid_side(tensors, width)
    heads = HEADS.get(width) or AttentionOrder().heads_of(width)
    if options.attention:
        heads = formats.parse_attention(options.attention).heads_of(width)
    elif width not in HEADS:
        source.notes.append(
            f"the number of heads is unknown: taken as {heads}, of {width // heads} channels each; give another with --attention"
        )
    rows = len(tensors.get(TABLE, ()))
    classes = max(rows - 1, 0) if options.num_classes is None else options.num_classes
    if rows - classes not in (0, 1):
        raise UsageError(
            f"--num-classes {classes}: {TABLE} has {rows} rows; give {rows}, or 1 less if the last row is 'no class'"
        )
    outputs = shape_of(tensors, LAST)[0]
    doubled = 2 * channels * patch**2
    with reading(where):
        config = DiTConfig(
            side * patch,
            channels,
            classes,
            width=width,
            depth=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            heads=heads,
            patch=patch,
            code=code,
            null_class=rows > classes,
            variance=outputs == doubled and not flow,
        )

    def convert_layout(name: str, tensor: Tensor) -> Tensor:
        if not name.startswith("last."):
            return tensor
        if flow and outputs == doubled:  # in each place of a patch, outputs are ordered by channel
            tensor = tensor.unflatten(0, (patch**2, 2, channels))[:, 0].flatten(0, 1)
        return -tensor if its_code == "flow-reversed" else tensor

    blocks = {"blocks": [f"blocks.{index}" for index in range(config.depth)]}
    modules = TABLES["dit"]["network"] | formats.block_modules(blocks, TABLES["dit"]["block"])
    weights = formats.fitted(tensors, config, source, modules, convert_layout, rf"{POSITIONS}|{PROJECTORS}.*")
    data: dict[str, JSON] = {}
    if channels not in (1, 3) or options.autoencoder:
        if channels != 4 and not options.autoencoder:
            raise UsageError(f"{where}: latents have {channels} channels, not Stable Diffusion's 4; add --autoencoder DIR")
        data = formats.latents_of(config, source, options, "diffusers")
    return Imported(config, weights, settings, averaged, data)


for _name, _code in CODES.items():
    source_format(
        _name,
        recognises=partial(_is, _name),
        takes=(
            *formats.STATE_DICT_OPTIONS,
            "num_classes",
            "autoencoder",
            "attention",
            *(["noise_input"] if _name == "dit" else []),
        ),
    )(partial(_translate, _code))
