"""EDM's checkpoints of its ADM network (DhariwalUNet): pickles, training states, state dicts. EDM2's share some of it.

Source: Karras et al. 2022. Its pickles bring their own source code along, which is not run; see files/pickles.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from elbocli.core.prediction import PREDICTIONS, logsnr_of
from elbocli.core.registry import plain
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import FormatError
from elbocli.files.pickles import attributes, class_name
from elbocli.files.reading import reading
from elbocli.importer.formats import (
    Imported,
    ImportOptions,
    Source,
    block_modules,
    entries,
    fitted,
    shape_of,
    source_format,
    state_dict,
)
from elbocli.nn.networks.blocks import heads_of
from elbocli.nn.networks.unet import UNetConfig

LICENCE = "CC BY-NC-SA 4.0, for the weights that NVIDIA published"
LEAST_SIGMA, MOST_SIGMA, SIGMA_DATA = 0.002, 80.0, 0.5
"""The levels that EDM and EDM2 sample at."""
DRAWN = (-1.2, 1.2)
"""Mean and standard deviation of ln σ that networks are trained with, where a file doesn't say."""
BLOCK = re.compile(r"\b(enc|dec)\.(\d+)x\2_(conv|down|up|in[01]|block\d+)\.")
"""The beginning of a name in a block: its way, its side, its place there."""
MODULES = {
    "conditioning.first": "map_layer0",
    "conditioning.second": "map_layer1",
    "conditioning.classes": "map_label",
    "norm": "out_norm",
    "last": "out_conv",
}
PARTS = {
    "norm1": "norm0",
    "conv1": "conv0",
    "scale_shift": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "skip": "skip",
    "attention.norm": "norm2",
    "attention.qkv": "qkv",
    "attention.out": "proj",
}
"""Modules outside of blocks, and parts of a block → EDM's."""
LABELS, AUGMENT = "map_label.weight", "map_augment.weight"
READ = {"", "EDMPrecond", "DhariwalUNet"}
"""Classes of EDM's code that elbo's network does the same as; a state dict has none."""


def submodules(module: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the attributes of a pickled network and of all modules in it."""
    told = attributes(module)
    yield name, told
    for key, inner in (told.get("_modules") or {}).items():
        yield from submodules(inner, f"{name}.{key}".strip("."))


def number(found: Mapping[str, Any], name: str, usual: float) -> float:
    """A number among these attributes; `usual` where there is none."""
    value = found.get(name, usual)
    return float(value) if type(value) in (int, float) else usual


def dropout_of(module: Any) -> float:
    """Dropout that a pickled network was trained with, which its blocks say; 0 in a state dict."""
    return max(number(told, "dropout", 0.0) for _, told in submodules(module))


def objective(source: Source, module: Any, loss: Mapping[str, Any], usual: tuple[float, float]) -> dict[str, Any]:
    """Settings of the objective, as the network and its loss function say; usual: else mean and spread of ln σ."""
    mean, std = (plain(number(loss, name, value)) for name, value in zip(("P_mean", "P_std"), usual))
    sigma_data = plain(number(attributes(module), "sigma_data", SIGMA_DATA))
    settings = {
        "prediction": f"edm:sigma_data={sigma_data}",
        "weighting": f"edm:mean={mean},std={std},sigma_data={sigma_data}",
        "schedule": f"edm:mean={mean},std={std}",
    }
    with reading(source.path):
        PREDICTIONS.parse(settings["prediction"])
        WEIGHTINGS.parse(settings["weighting"])
    return {**settings, "logsnr_min": logsnr_of(MOST_SIGMA), "logsnr_max": logsnr_of(LEAST_SIGMA)}


def layout(tensors: Mapping[str, Tensor], conv: str, parts: Mapping[str, str]) -> tuple[Any, ...]:
    """(sizes from the largest, their widths, residual blocks in each, channels of images, elbo's names of modules → theirs).

    conv: the first convolution of a block of EDM's or EDM2's network. parts: of a block.
    """
    places = [match.groups() for match in map(BLOCK.match, tensors) if match]
    sides = sorted({int(side) for _, side, _ in places}, reverse=True)
    if not sides:
        raise FormatError("has no blocks of EDM's networks, such as enc.64x64_block0")
    blocks = len({place for way, _, place in places if way == "enc" and place.startswith("block")})
    names = [f"block{index}" for index in range(blocks + 1)]
    below, first = f"dec.{sides[-1]}x{sides[-1]}", f"enc.{sides[0]}x{sides[0]}_conv"
    ours = {
        "down": [f"enc.{side}x{side}_{name}" for side in sides for name in ("down", *names[:-1])][1:],
        "middle": [f"{below}_in0", f"{below}_in1"],
        "up": [f"dec.{side}x{side}_{name}" for side in reversed(sides) for name in ("up", *names)][1:],
    }
    widths = [shape_of(tensors, f"enc.{side}x{side}_block0.{conv}.weight", 4)[0] for side in sides]
    channels = shape_of(tensors, f"{first}.weight", 4)[1]
    return sides, widths, blocks, channels, {"first": first, **block_modules(ours, parts)}


def split_heads(qkv: Tensor) -> Tensor:
    """Put q, k and v first. EDM's and EDM2's have heads first, then channels of a head, with q, k and v side by side."""
    return qkv.unflatten(0, (heads_of(len(qkv) // 3), -1, 3)).movedim(2, 0).flatten(0, 2)


def _turned(name: str, tensor: Tensor) -> Tensor:
    if name == "conditioning.classes.weight":
        return tensor.T
    return split_heads(tensor) if ".attention.qkv." in name else tensor


def _is_network(names: Iterable[str]) -> bool:
    return any(name.endswith("map_layer0.weight") for name in names) and any(map(BLOCK.search, names))


@source_format(
    "edm",
    about="EDM's ADM network (DhariwalUNet): network pickles, training-state-*.pt, state dicts; with classes or without.",
    source="Karras et al. 2022",
    licence=LICENCE,
    recognises=lambda source: any(map(_is_network, entries(source.tree).values())),
)
def edm(source: Source, options: ImportOptions) -> Imported:
    """Read the network off names and shapes, and the objective off the objects of a pickle."""
    where = source.path
    held, averaged, module = state_dict(source, options, meant=_is_network)
    strange = {class_name(module), class_name(attributes(module).get("_modules", {}).get("model"))} - READ
    if strange:
        raise FormatError(
            f"{where}: has {' and '.join(sorted(strange))}, which elbo doesn't have; of EDM's networks it reads DhariwalUNet "
            "in EDMPrecond"
        )
    tensors = {name.removeprefix("model."): each for name, each in held.items()}
    width, channels = shape_of(tensors, "map_layer0.weight", 2)
    sides, widths, blocks, image_channels, modules = layout(tensors, "conv0", PARTS)

    def attends(block: str) -> bool:
        return any(name.startswith((f"{block}.norm2.", f"{block}.qkv.", f"{block}.proj.")) for name in tensors)

    with reading(where):
        config = UNetConfig(
            image_size=sides[0],
            image_channels=image_channels,
            num_classes=shape_of(tensors, LABELS, 2)[1] if LABELS in tensors else 0,
            channels=channels,
            levels=tuple(width / channels for width in widths),
            blocks=blocks,
            attention=tuple(side for side in sides if attends(f"enc.{side}x{side}_block0")),
            middle_attention=attends(f"dec.{sides[-1]}x{sides[-1]}_in0"),
            embedding=0 if width == 4 * channels else width,
            code="logsnr:factor=-0.125",
            dropout=dropout_of(module),
        )
    weights = fitted(tensors, config, source, MODULES | modules, _turned, rf"{re.escape(AUGMENT)}|.*\.resample_filter")
    if AUGMENT in tensors:
        source.notes.append(
            "it was trained with augmented images, and elbo samples images as they were: map_augment is left out"
        )
    if isinstance(module, dict):
        source.notes.append(
            f"{where}: nothing in it says so: its network is taken as preconditioned by EDM (EDMPrecond)"
        )
    loss = source.tree.get("loss_fn") if isinstance(source.tree, dict) else None
    trained = objective(source, module, attributes(loss) if class_name(loss) == "EDMLoss" else {}, DRAWN)
    return Imported(config, weights, trained, averaged, source.notes)
