"""EDM's checkpoints of its ADM network (DhariwalUNet): pickles, training states, state dicts.

Source: Karras et al. 2022. Its pickles bring their own source code along, which is not run; see files/pickles.py.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from elbocli.core.prediction import PREDICTIONS
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import FormatError
from elbocli.files.pickles import Foreign, attributes, class_name, module_tensors
from elbocli.files.reading import reading
from elbocli.importer.edm_family import BLOCK, LICENCE, counted, number, objective
from elbocli.importer.formats import (
    Imported,
    ImportOptions,
    Source,
    called,
    chosen,
    entries,
    fitted,
    source_format,
    state_dict,
    unwrapped,
)
from elbocli.importer.unet_weights import by_modules, shape_of, taken
from elbocli.nn.networks.blocks import HEAD_WIDTH, heads_of
from elbocli.nn.networks.unet import UNetConfig

PRECONDITIONINGS = {"EDMPrecond": "EDM's own", "VPPrecond": "VP", "VEPrecond": "VE", "iDDPMPrecond": "iDDPM's"}
NETWORKS = ("DhariwalUNet", "SongUNet")
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
"""Parts of a block → EDM's."""
LABELS = "map_label.weight"
DRAWN = (-1.2, 1.2)
"""Mean and standard deviation of ln σ that networks are trained with, where a file doesn't say."""
IGNORED = re.compile(r"map_augment\.weight|.*\.resample_filter")
"""Names of what elbo doesn't need: the means that halve an image, and what says how an image was augmented."""


class Held(NamedTuple):
    """tensors: by names within the preconditioning. module: the pickled one, None where it was a state dict."""

    tensors: dict[str, Tensor]
    averaged: bool
    module: Foreign | None


def _pickled(tree: Any) -> dict[str, Foreign]:
    """Return the pickled networks in a file by their keys; one that is all of it has the key ''."""
    held = {"": tree, **tree} if isinstance(tree, dict) else {"": tree}
    return {key: each for key, each in held.items() if class_name(each) in (*PRECONDITIONINGS, *NETWORKS)}


def _recognises(source: Source) -> bool:
    return bool(_pickled(source.tree)) or any(
        any(name.endswith("map_layer0.weight") for name in names) and any(map(_in_block, names))
        for names in entries(source.tree).values()
    )


def _in_block(name: str) -> bool:
    return re.search(r"(?:^|\.)" + BLOCK.pattern, name) is not None


def _held(source: Source, options: ImportOptions) -> Held:
    """Return the weights that are asked for. Raises FormatError, UsageError where there are none."""
    found = _pickled(source.tree)
    if not found:
        return Held(*state_dict(source, options), None)
    key = next(iter(found)) if len(found) == 1 else chosen(found, source, options)
    module = found[key]
    with reading(source.path):
        tensors = unwrapped(module_tensors(module))
        if not tensors:
            raise FormatError("its network holds no weights")
    return Held(called(tensors, options, source.path), key != "net", module)


def _refuse_others(held: Held, where: Path) -> None:
    """Raise FormatError for networks and preconditionings of EDM's code that elbo doesn't have."""
    names = [class_name(held.module), class_name(attributes(held.module).get("_modules", {}).get("model"))]
    if "SongUNet" in names or any("_aux_" in name for name in held.tensors):
        raise FormatError(
            f"{where}: holds a DDPM++ or NCSN++ network (SongUNet), which elbo doesn't have; of EDM's networks it has ADM's "
            "(DhariwalUNet)"
        )
    other = next((name for name in names if name in PRECONDITIONINGS and name != "EDMPrecond"), None)
    if other is None and "u" in held.tensors:
        other = "iDDPMPrecond"
    if other:
        raise FormatError(
            f"{where}: its network is told of noise, and predicts it, by {PRECONDITIONINGS[other]} preconditioning "
            f"({other}), which elbo doesn't read; it reads EDM's own (EDMPrecond)"
        )


def _dropout(held: Held) -> float:
    """Dropout that the network was trained with, which its blocks say; 0 in a state dict."""
    module: Any = held.module
    for name in ("model", "enc") if class_name(module) in PRECONDITIONINGS else ("enc",):
        inner = attributes(module).get("_modules")
        module = inner.get(name) if isinstance(inner, dict) else None
    blocks = attributes(module).get("_modules")
    return max((number(block, "dropout", 0.0) for block in blocks.values()), default=0.0) if blocks else 0.0


def _objective(source: Source, held: Held) -> dict[str, Any]:
    """Settings of the objective; mean and spread of ln σ are the loss function's, where the file holds it."""
    loss = source.tree.get("loss_fn") if isinstance(source.tree, dict) else None
    own = loss if class_name(loss) == "EDMLoss" else None
    settings = objective(held.module, own, DRAWN)
    with reading(source.path):
        for registry, key in ((PREDICTIONS, "prediction"), (WEIGHTINGS, "weighting")):
            registry.parse(str(settings[key]))
    return settings


def _attends(tensors: dict[str, Tensor], block: str) -> bool:
    """Tell whether a block has anything of attention."""
    return any(name.startswith(f"{block}.{part}.") for name in tensors for part in ("norm2", "qkv", "proj"))


@source_format(
    "edm",
    about="EDM's ADM network (DhariwalUNet): network pickles, training-state-*.pt, state dicts; with classes or without.",
    source="Karras et al. 2022",
    licence=LICENCE,
    recognises=_recognises,
)
def edm(source: Source, options: ImportOptions) -> Imported:
    where = source.path
    held = _held(source, options)
    _refuse_others(held, where)
    tensors = {name.removeprefix("model."): each for name, each in held.tensors.items()}
    width, channels = shape_of(tensors, "map_layer0.weight", 2, where)
    sides = sorted({int(match[2]) for match in map(BLOCK.match, tensors) if match}, reverse=True)
    size = max(sides, default=0)
    blocks = len({match[3] for match in map(BLOCK.match, tensors) if match and match[1] == "enc"} - {"conv", "down"})
    first = shape_of(tensors, f"enc.{size}x{size}_conv.weight", 4, where)
    levels = [shape_of(tensors, f"enc.{side}x{side}_block0.conv0.weight", 4, where)[0] / channels for side in sides]
    bottom = f"dec.{sides[-1]}x{sides[-1]}"
    with reading(where):
        config = UNetConfig(
            image_size=size,
            image_channels=first[1],
            num_classes=shape_of(tensors, LABELS, 2, where)[1] if LABELS in tensors else 0,
            channels=channels,
            levels=tuple(levels),
            blocks=blocks,
            attention=tuple(side for side in sides if _attends(tensors, f"enc.{side}x{side}_block0")),
            middle_attention=_attends(tensors, f"{bottom}_in0"),
            embedding=0 if width == 4 * channels else width,
            code="logsnr:factor=-0.125",
            dropout=_dropout(held),
        )
    modules = {
        "conditioning.first": "map_layer0",
        "conditioning.second": "map_layer1",
        "conditioning.classes": "map_label",
        "first": f"enc.{size}x{size}_conv",
        "norm": "out_norm",
        "last": "out_conv",
    }
    residual: dict[str, list[str]] = {"down": [], "middle": [f"{bottom}_in0", f"{bottom}_in1"], "up": []}
    for side in sides:
        resized = ["down"] if side < size else []
        residual["down"] += [f"enc.{side}x{side}_{name}" for name in [*resized, *counted(blocks)]]
    for side in reversed(sides):
        resized = ["up"] if side > sides[-1] else []
        residual["up"] += [f"dec.{side}x{side}_{name}" for name in [*resized, *counted(blocks + 1)]]
    for way, names in residual.items():
        for (index, name), (part, theirs) in product(enumerate(names), PARTS.items()):
            modules[f"{way}.{index}.{part}"] = f"{name}.{theirs}"

    def turned(name: str, tensor: Tensor) -> Tensor:
        if name == "conditioning.classes.weight":
            return tensor.T
        if ".attention.qkv." not in name:
            return tensor
        heads = heads_of(len(tensor) // 3, HEAD_WIDTH)
        return tensor.unflatten(0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)

    without = [name for name in tensors if IGNORED.fullmatch(name)]
    weights, notes = fitted(taken(tensors, config, by_modules(modules), where, turned, without), config, where)
    if "map_augment.weight" in tensors:
        notes.append(
            "it was trained with augmented images, and elbo samples images as they were: map_augment is left out"
        )
    if held.module is None:
        notes.append(f"{where}: nothing in it says so: its network is taken as preconditioned by EDM (EDMPrecond)")
    data = {"image_size": size, "channels": first[1], "num_classes": config.num_classes}
    return Imported(config, weights, _objective(source, held), data, held.averaged, LICENCE, notes)
