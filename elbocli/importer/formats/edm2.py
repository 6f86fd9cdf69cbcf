"""EDM2's checkpoints: network pickles of pixels and of latents, training states, state dicts.

Source: Karras et al. 2024, arXiv:2312.02696. Its pickles bring their own source code along, which is not run; see
files/pickles.py. Names, shapes, order and constants are as its published code has them, and half precision makes XS as
large as its published file; no such file was read. The head that learns the weighting of the loss is left out: it serves
training alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from elbocli.errors import FormatError, UsageError
from elbocli.files.pickles import Foreign, attributes, class_name
from elbocli.files.reading import reading
from elbocli.importer.formats import (
    NAMED,
    Imported,
    ImportOptions,
    Source,
    entries,
    fitted,
    inventory,
    latents_of,
    shape_of,
    source_format,
    state_dict,
)
from elbocli.importer.formats.edm import LICENCE, dropout_of, layout, objective, split_heads, submodules
from elbocli.nn.networks import edm2 as ours
from elbocli.nn.networks.blocks import heads_of
from elbocli.nn.networks.edm2 import EDM2Config

LATENTS, PIXELS = "StabilityVAEEncoder", "StandardRGBEncoder"
DRAWN = {LATENTS: (-0.4, 1.0), PIXELS: (-0.8, 1.6)}
"""Mean and standard deviation of ln σ that networks of each kind are trained with, where a file doesn't say."""
ENCODERS = {1: PIXELS, 3: PIXELS, 4: LATENTS}
"""Channels → the encoder that gives as many, where a file doesn't say."""
MARKS = ("emb_fourier.freqs", "emb_noise.weight", "out_gain")
"""Ends of names by which the network is told."""
UNCERTAINTY = r"logvar_(fourier|linear)\..*"
MODULES = {
    "conditioning.frequencies": "emb_fourier.freqs",
    "conditioning.phases": "emb_fourier.phases",
    "conditioning.level": "emb_noise",
    "conditioning.classes": "emb_label",
    "last": "out_conv",
    "gain": "out_gain",
}
PARTS = {
    "gain": "emb_gain",
    "conv1": "conv_res0",
    "scale": "emb_linear",
    "conv2": "conv_res1",
    "skip": "conv_skip",
    "attention.qkv": "attn_qkv",
    "attention.out": "attn_proj",
}
"""Modules and weights outside of blocks, and in a block → EDM2's."""
CONSTANTS: dict[str, Any] = {
    "label_balance": ours.CLASS,
    "concat_balance": ours.JOINED,
    "res_balance": ours.RESIDUAL,
    "attn_balance": ours.ATTENTION,
    "clip_act": ours.CLIP,
    "resample_filter": [1, 1],
}
"""Attributes of EDM2's objects that elbo's network has as constants."""


def _content(source: Source) -> tuple[Any, list[Any]]:
    """(the file's content, relative standard deviations of its averages); the first average stands under "ema" itself."""
    tree: Any = source.tree
    tree = tree.items or tree if isinstance(tree, Foreign) else tree
    ema = tree.get("ema") if isinstance(tree, dict) else None
    averages = ema.items if isinstance(ema, Foreign) else ema
    if not isinstance(averages, dict) or not isinstance(averages.get("emas"), list) or not averages["emas"]:
        return tree, []
    return {**tree, "ema": averages["emas"][0]}, list(averages.get("stds") or [])


def _is_network(names: Iterable[str]) -> bool:
    return all(any(name.endswith(mark) for name in names) for mark in MARKS)


def _check_constants(module: Any) -> None:
    """Raise FormatError for a pickled network with other constants than elbo's."""
    for name, told in submodules(module):
        channels, heads = told.get("out_channels"), told.get("num_heads")
        wanted = dict(CONSTANTS)
        if type(channels) is int and type(heads) is int and heads:
            wanted["num_heads"] = heads_of(channels)
        for key, value in wanted.items():
            found = told.get(key, value)
            if (list(found) if isinstance(found, tuple) else found) != value:
                raise FormatError(f"{name} has {key} {found}, elbo's network has {value}; it can't be imported")


def _encoder(content: Any, channels: int) -> str:
    """The encoder that made the images that the network sees, LATENTS or PIXELS. Raises FormatError for another."""
    encoder = content.get("encoder") if isinstance(content, dict) else None
    told = attributes(encoder)
    name = ENCODERS.get(channels) if encoder is None else class_name(encoder) or inventory(encoder)
    if name not in DRAWN or told.get("_init_kwargs") or told.get("_init_args"):
        raise FormatError(
            f"its encoder is {name}, perhaps with numbers of its own, expected {' or '.join(DRAWN)} as published"
        )
    return name


def _turned(name: str, tensor: Tensor) -> Tensor:
    if name.rpartition(".")[2] == "gain" and not tensor.dim():
        return tensor[None]
    return split_heads(tensor) if name.endswith(".attention.qkv.weight") else tensor


@source_format(
    "edm2",
    about="EDM2's networks, of latents (edm2-img512-*.pkl) and of pixels (edm2-img64-*.pkl): network pickles, "
    "training-state-*.pt, state dicts.",
    source="Karras et al. 2024",
    licence=LICENCE,
    recognises=lambda source: any(map(_is_network, entries(_content(source)[0]).values())),
    takes=(*NAMED, "autoencoder"),
)
def edm2(source: Source, options: ImportOptions) -> Imported:
    """Read the network off names and shapes, and the objective off the objects of a pickle."""
    where = source.path
    content, stds = _content(source)
    held, averaged, module = state_dict(source, options, content, _is_network)
    if len(stds) > 1 and averaged:
        source.notes.append(f"of its {len(stds)} averages, of std {', '.join(map(str, stds))}, the first is taken")
    _check_constants(module)
    tensors = {name.removeprefix("unet."): each for name, each in held.items()}
    sides, widths, blocks, image_channels, modules = layout(tensors, "conv_res0", PARTS)
    channels = math.gcd(*widths)
    with reading(where):
        config = EDM2Config(
            image_size=sides[0],
            image_channels=image_channels - 1,
            num_classes=shape_of(tensors, "emb_label.weight", 2)[1] if "emb_label.weight" in tensors else 0,
            channels=channels,
            levels=tuple(width // channels for width in widths),
            blocks=blocks,
            attention=tuple(side for side in sides if f"enc.{side}x{side}_block0.attn_qkv.weight" in tensors),
            dropout=dropout_of(module),
        )
    weights = fitted(tensors, config, source, MODULES | modules, _turned, UNCERTAINTY)
    kind = _encoder(content, config.image_channels)
    if kind == PIXELS and options.autoencoder is not None:
        raise UsageError(f"--autoencoder: {where} is a network of pixels; leave it out")
    loss = content.get("loss_fn") if isinstance(content, dict) else None
    loss, (mean, std) = loss if isinstance(loss, dict) else attributes(loss), DRAWN[kind]
    if "P_mean" not in loss:
        source.notes.append(f"doesn't say the noise it was trained with: taken as ln sigma ~ N({mean:g}, {std:g}^2)")
    data = latents_of(config, source, options, "edm2") if kind == LATENTS else {}
    trained = objective(source, module, loss, (mean, std))
    return Imported(config, weights, trained, averaged, source.notes, data)
