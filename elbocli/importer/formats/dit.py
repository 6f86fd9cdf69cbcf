"""Checkpoints of DiT and of what shares its network, SiT and REPA: state dicts, alone or in their training scripts' files.

Source: Peebles & Xie 2023; Ma et al. 2024; Yu et al. 2025. The three have the same names and shapes, and differ in what the
network is told and what it gives. DiT: a timestep of 1000, and the noise. SiT: t, 1 being data, and x − ε at
t x + (1 − t) ε. REPA: t, 1 being noise, and ε − x at (1 − t) x + t ε.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
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
    latents_of,
    parse_attention,
    shape_of,
    source_format,
    state_dict,
    timestep_settings,
)
from elbocli.nn.networks.dit import DiTConfig, positions

PATCH, POSITIONS, TABLE, LAST = (
    "x_embedder.proj.weight",
    "pos_embed",
    "y_embedder.embedding_table.weight",
    "final_layer.linear.weight",
)
MARKS = {PATCH, POSITIONS, LAST, "blocks.0.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.weight"}
"""Names by which the network is told."""
PROJECTORS = "projectors."
MODULES = {
    "conditioning.first": "t_embedder.mlp.0",
    "conditioning.second": "t_embedder.mlp.2",
    "conditioning.classes": "y_embedder.embedding_table",
    "first": "x_embedder.proj",
    "modulation": "final_layer.adaLN_modulation.1",
    "last": "final_layer.linear",
}
PARTS = {
    "modulation": "adaLN_modulation.1",
    "qkv": "attn.qkv",
    "mix": "attn.proj",
    "widen": "mlp.fc1",
    "narrow": "mlp.fc2",
}
"""Modules of elbo's network outside of blocks, and in a block → theirs."""
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Widths of S, B, L and XL → their heads, which shapes don't tell."""
LATENT_CHANNELS, PIXEL_CHANNELS = 4, (1, 3)
META, AUTHORS = "CC BY-NC 4.0, for the weights that Meta published", "MIT, for the weights that its authors published"
FLOW = {"prediction": "u-path", "weighting": "fm-ot", "schedule": "fm-ot", "logsnr_min": -15.0, "logsnr_max": 15.0}
"""Settings of a network that was trained on all times: those below 0.0006 and above 0.9994 lie outside."""


def _kind(source: Source) -> str:
    """The name of the format that names in a file tell: dit or repa, '' for neither."""
    for names in entries(source.tree).values():
        if set(names) >= MARKS:
            return "repa" if any(name.startswith(PROJECTORS) for name in names) else "dit"
    return ""


def _translate(its_code: str, sign: int, source: Source, options: ImportOptions) -> Imported:
    """Read the network off names and shapes. its_code: the format's level code. sign: of its output against the prediction's."""
    code = options.levels or its_code
    flow = its_code.startswith("flow")
    settings = FLOW if flow else timestep_settings(code, source, options)
    if not flow:
        source.notes.append(
            "read as DiT's; SiT's and REPA's look alike: if it is one, say --format sit or --format repa"
        )
    where = source.path
    tensors, averaged, _ = state_dict(source, options)
    width, channels, patch, _ = shape_of(tensors, PATCH, 4)
    side = math.isqrt(shape_of(tensors, POSITIONS, 3)[1])
    _check_positions(tensors[POSITIONS], side, width)
    heads = HEADS.get(width) or AttentionOrder().heads_of(width)
    if options.attention:
        heads = parse_attention(options.attention).heads_of(width)
    elif width not in HEADS:
        source.notes.append(
            f"shapes don't say its heads: taken as {heads}, of {width // heads} channels each; say others by --attention"
        )
    rows = shape_of(tensors, TABLE, 2)[0] if TABLE in tensors else 0
    classes = max(rows - 1, 0) if options.classes is None else options.classes
    if rows - classes not in (0, 1):
        raise UsageError(
            f"--classes {classes}: {where} has a table of {rows} rows, for {max(rows - 1, 0)} classes and none, or {rows}"
        )
    outputs, doubled = shape_of(tensors, LAST, 2)[0], 2 * channels * patch**2
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

    def turned(name: str, tensor: Tensor) -> Tensor:
        if not name.startswith("last."):
            return tensor
        if flow and outputs == doubled:  # channel by channel in every place of a patch
            tensor = tensor.unflatten(0, (patch**2, 2, channels))[:, 0].flatten(0, 1)
        return sign * tensor

    blocks = {"blocks": [f"blocks.{index}" for index in range(config.depth)]}
    modules = MODULES | block_modules(blocks, PARTS)
    weights = fitted(tensors, config, source, modules, turned, rf"{POSITIONS}|{PROJECTORS}.*")
    data: dict[str, Any] = {}
    if channels not in PIXEL_CHANNELS or options.autoencoder:
        if channels != LATENT_CHANNELS and not options.autoencoder:
            raise UsageError(
                f"{where}: its latents have {channels} channels, of no known autoencoder; add --autoencoder DIR"
            )
        data = latents_of(config, source, options, "diffusers")
    return Imported(config, weights, settings, averaged, source.notes, data)


def _check_positions(found: Tensor, side: int, width: int) -> None:
    """Raise FormatError for places that aren't coded as elbo codes them: files hold them, though nothing trained them."""
    wanted = positions(side, width, torch.device("cpu"))
    most = 1e-5 if found.dtype in (torch.float32, torch.float64) else 1e-2
    if found.shape[1:] != wanted.shape or not bool(((found[0].float() - wanted).abs() < most).all()):
        raise FormatError(f"{POSITIONS} isn't DiT's code of a square of places, by sines and cosines, as elbo's")


def _declare(name: str, about: str, source: str, licence: str, code: str, sign: int = 1) -> None:
    source_format(
        name,
        about=about,
        source=source,
        licence=licence,
        recognises=lambda source: _kind(source) == name,
        takes=(*NAMED, "classes", "autoencoder", "attention", *(["levels"] if name == "dit" else [])),
    )(partial(_translate, code, sign))


_declare(
    "dit",
    "DiT's networks, DiT-XL-2-256x256.pt and others of its training script. SiT's look alike: say --format sit.",
    "Peebles & Xie 2023",
    META,
    "t-linear",
)
_declare(
    "sit",
    "SiT's networks of the linear path that give the velocity: SiT-XL-2-256x256.pt and others of its script.",
    "Ma et al. 2024",
    AUTHORS,
    "flow-reversed",
    sign=-1,
)
_declare(
    "repa",
    "REPA's SiT networks of the linear path that give the velocity; its projectors are left out.",
    "Yu et al. 2025",
    AUTHORS,
    "flow",
)
