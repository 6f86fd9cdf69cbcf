"""Checkpoints of DiT and of what shares its network, SiT and REPA: state dicts, alone or in their training scripts' files.

Source: Peebles & Xie 2023; Ma et al. 2024; Yu et al. 2025. The three have the same names and shapes, and differ in what the
network is told and what it gives. DiT: a timestep of 1000, and the noise. SiT: t, 1 being data, and x − ε at
t x + (1 − t) ε. REPA: t, 1 being noise, and ε − x at (1 − t) x + t ε.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.core.registry import nearest
from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.files.latents import UNKNOWN, LatentSpace
from elbocli.files.reading import reading
from elbocli.importer.attention import AttentionOrder
from elbocli.importer.formats import (
    AUTOENCODER,
    FACTOR,
    NAMED,
    Imported,
    ImportOptions,
    Source,
    entries,
    fitted,
    latents_of,
    source_format,
    state_dict,
)
from elbocli.importer.levels import timestep_settings
from elbocli.nn.networks import build
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
BLOCK = {
    "modulation": "adaLN_modulation.1",
    "qkv": "attn.qkv",
    "mix": "attn.proj",
    "widen": "mlp.fc1",
    "narrow": "mlp.fc2",
}
"""Modules of elbo's network, and of a block → theirs."""
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Widths of S, B, L and XL → their heads, which shapes don't tell."""
SCALE = 0.18215
"""The scale of the autoencoder's latents; sd-vae-ft-ema encodes alike."""
RANGE = {"logsnr_min": -15.0, "logsnr_max": 15.0}
"""Of a network that was trained on all times: those below 0.0006 and above 0.9994 lie outside."""
LATENT_CHANNELS, PIXEL_CHANNELS = 4, (1, 3)


@dataclass(frozen=True)
class Convention:
    """code: the level code. negated: whether the network gives the opposite of the prediction. settings: as it was trained."""

    code: str
    licence: str
    settings: dict[str, Any]
    negated: bool = False


LICENCE = "MIT, for the weights that its authors published"
FLOW = {"prediction": "u-path", "weighting": "fm-ot", "schedule": "fm-ot", **RANGE}
DIT = Convention("t-linear", "CC BY-NC 4.0, for the weights that Meta published", {"prediction": "eps"})
SIT = Convention("flow-reversed", LICENCE, FLOW, negated=True)
REPA = Convention("flow", LICENCE, FLOW)
TAKES = (*NAMED, "classes", "autoencoder", "attention")


def _recognises(source: Source) -> bool:
    return any(set(names) >= MARKS for names in entries(source.tree).values()) and not _recognises_repa(source)


def _recognises_repa(source: Source) -> bool:
    held = [set(names) for names in entries(source.tree).values()]
    return any(names >= MARKS and any(name.startswith(PROJECTORS) for name in names) for names in held)


@source_format(
    "dit",
    about="DiT's networks, DiT-XL-2-256x256.pt and others of its training script. SiT's look alike: say --format sit.",
    source="Peebles & Xie 2023",
    licence=DIT.licence,
    recognises=_recognises,
    takes=(*TAKES, "levels"),
)
def dit(source: Source, options: ImportOptions) -> Imported:
    code = parse_level_code(options.levels or DIT.code)
    settings = {**DIT.settings, **timestep_settings(code.spec)}
    found = _translated(source, options, replace(DIT, code=code.spec, settings=settings), "dit")
    found.notes.append("read as DiT's; SiT's and REPA's look alike: if it is one, say --format sit or --format repa")
    return found


@source_format(
    "sit",
    about="SiT's networks of the linear path that give the velocity: SiT-XL-2-256x256.pt and others of its script.",
    source="Ma et al. 2024",
    licence=LICENCE,
    recognises=lambda source: False,
    takes=TAKES,
)
def sit(source: Source, options: ImportOptions) -> Imported:
    return _translated(source, options, SIT, "sit")


@source_format(
    "repa",
    about="REPA's SiT networks of the linear path that give the velocity; its projectors are left out.",
    source="Yu et al. 2025",
    licence=LICENCE,
    recognises=_recognises_repa,
    takes=TAKES,
)
def repa(source: Source, options: ImportOptions) -> Imported:
    return _translated(source, options, REPA, "repa")


def _translated(source: Source, options: ImportOptions, convention: Convention, name: str) -> Imported:
    where, notes = source.path, list[str]()
    tensors, averaged = state_dict(source, options)
    if any(re.fullmatch(r"blocks\.\d+\.mlp\.w12\.weight", each) for each in tensors):
        raise FormatError(
            f"{where}: is LightningDiT's network, with gated layers and rotary positions, and elbo has no such one; export "
            "it as a program (.pt2)"
        )
    dropped = [each for each in tensors if each.startswith(PROJECTORS)] if name == "repa" else []
    if dropped:
        notes.append(f"{len(dropped)} tensors of its projectors are left out: they serve its training alone")
        tensors = {each: tensor for each, tensor in tensors.items() if each not in dropped}
    config = _config(tensors, options, convention, where, notes)
    weights = _by_our_names(tensors, config, where)
    if convention.negated:
        weights |= {f"last.{each}": -weights[f"last.{each}"] for each in ("weight", "bias")}
    if name != "dit" and tensors[LAST].shape[0] == 2 * config.image_channels * config.patch**2:
        config, weights = _without_variance(config, weights)
        notes.append("the second half of what it gives is left out: nothing trained it")
    weights, more = fitted(weights, config, where)
    data = {"image_size": config.image_size, "channels": config.image_channels, "num_classes": config.num_classes}
    data |= _latents(config, options, where, notes)
    settings = {"label_dropout": 0.1 if config.null_class and config.num_classes else 0.0, **convention.settings}
    return Imported(config, weights, settings, data, averaged, convention.licence, [*notes, *more])


def _shape(tensors: dict[str, Tensor], name: str, dimensions: int, where: Path) -> torch.Size:
    if name not in tensors:
        raise FormatError(f"{where}: lacks {name}; {nearest(name, tensors, 5)}")
    shape = tensors[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise FormatError(f"{where}: {name} has the shape {list(shape)}, expected {dimensions} dimensions")
    return shape


def _config(
    tensors: dict[str, Tensor], options: ImportOptions, convention: Convention, where: Path, notes: list[str]
) -> DiTConfig:
    """The network that the shapes tell. Raises FormatError where they don't fit each other."""
    width, channels, patch, _ = _shape(tensors, PATCH, 4, where)
    _, tokens, _ = _shape(tensors, POSITIONS, 3, where)
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise FormatError(f"{where}: {POSITIONS} has {tokens} places, expected those of a square")
    indices = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d{1,4})\.", name))}
    depth = len(indices)
    if indices != set(range(depth)):
        lacking = min(set(range(depth)) - indices)
        raise FormatError(f"{where}: lacks blocks.{lacking}, and has blocks.{max(indices)}")
    heads = HEADS.get(width) or AttentionOrder().heads_of(width)
    if options.attention:
        heads = AttentionOrder.parse(options.attention).heads_of(width)
        if width % heads:
            raise UsageError(
                f"--attention {options.attention}: {heads} heads do not divide the width {width} of {where}"
            )
    elif width not in HEADS:
        notes.append(
            f"shapes don't say its heads: taken as {heads}, of {width // heads} channels each; say others by --attention"
        )
    rows = _shape(tensors, TABLE, 2, where)[0] if TABLE in tensors else 0
    classes = max(rows - 1, 0) if options.classes is None else options.classes
    if rows - classes not in (0, 1):
        raise UsageError(
            f"--classes {classes}: {where} has a table of {rows} rows, for {max(rows - 1, 0)} classes and none, or {rows}"
        )
    outputs = _shape(tensors, LAST, 2, where)[0]
    if outputs not in (channels * patch**2, 2 * channels * patch**2):
        raise FormatError(
            f"{where}: {LAST} gives {outputs} numbers for a patch of {patch} x {patch} with {channels} channels, expected "
            f"{channels * patch**2} or twice as many"
        )
    with reading(where):
        config = DiTConfig(
            side * patch,
            channels,
            classes,
            width=width,
            depth=depth,
            heads=heads,
            patch=patch,
            code=convention.code,
            null_class=rows > classes,
            variance=outputs == 2 * channels * patch**2,
        )
    _check_positions(tensors[POSITIONS], side, width, where)
    return config


def _check_positions(found: Tensor, side: int, width: int, where: Path) -> None:
    """Raise FormatError for places that aren't coded as elbo codes them: files hold them, though nothing trained them."""
    wanted = positions(side, width, torch.device("cpu"))
    most = 1e-5 if found.dtype in (torch.float32, torch.float64) else 1e-2
    if found.shape[1:] != wanted.shape or not bool(((found[0].float() - wanted).abs() < most).all()):
        raise FormatError(f"{where}: {POSITIONS} isn't DiT's code of places, by sines and cosines, which elbo computes")


def _by_our_names(tensors: dict[str, Tensor], config: DiTConfig, where: Path) -> dict[str, Tensor]:
    """The tensors by elbo's names. Raises FormatError with the first that is missing or too many, by their name."""
    with torch.device("meta"):
        ours = list(build(config).state_dict())
    theirs = {}
    for name in ours:
        module, _, kind = name.rpartition(".")
        block, _, part = module.rpartition(".")
        theirs[name] = f"{block}.{BLOCK[part]}.{kind}" if block.startswith("blocks.") else f"{MODULES[module]}.{kind}"
    for name in theirs.values():
        if name not in tensors:
            raise FormatError(f"{where}: lacks {name}; {nearest(name, tensors, 5)}")
    known = {*theirs.values(), POSITIONS}
    for name in tensors:
        if name not in known:
            raise FormatError(f"{where}: has {name}, which DiT's network doesn't; is it of another one?")
    return {name: tensors[their] for name, their in theirs.items()}


def _without_variance(config: DiTConfig, weights: dict[str, Tensor]) -> tuple[DiTConfig, dict[str, Tensor]]:
    """The network with the first half of its outputs; they stand channel by channel in every place of a patch."""
    kept = {}
    for name in ("last.weight", "last.bias"):
        rows = weights[name].unflatten(0, (config.patch**2, 2, config.image_channels))[:, 0]
        kept[name] = rows.flatten(0, 1)
    return replace(config, variance=False), {**weights, **kept}


def _latents(config: DiTConfig, options: ImportOptions, where: Path, notes: list[str]) -> dict[str, Any]:
    """Facts on latents for the section data of a run; none for pixels. Raises UsageError where the autoencoder must be said."""
    size, channels = config.image_size, config.image_channels
    if options.autoencoder is not None:
        return latents_of(options.autoencoder, "diffusers", size, channels, where)
    if channels in PIXEL_CHANNELS:
        return {}
    if channels != LATENT_CHANNELS:
        raise UsageError(
            f"{where}: its latents have {channels} channels, of no known autoencoder; add --autoencoder DIR"
        )
    notes.append(
        f"taken as latents of {AUTOENCODER} or sd-vae-ft-ema; 'elbo sample' needs its folder: --autoencoder DIR, here or there"
    )
    shift, scale = (0.0,) * channels, (SCALE,) * channels
    space = LatentSpace("diffusers", shift, scale, "[-1,1]", AUTOENCODER, UNKNOWN, FACTOR * size, False)
    return space.attributes()
