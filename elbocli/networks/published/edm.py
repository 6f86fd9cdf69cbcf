"""Import checkpoints of EDM (DhariwalUNet) and EDM2.

Source: Karras et al. 2022; Karras et al. 2024, arXiv:2312.02696.
"""
# The pickles contain source code, which is not run (files/pickles.py). Tests read no published file of EDM2, but elbo's
# network XS in half precision is as large as the published file. Only training needs the head that learns EDM2's weighting.

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict

from torch import Tensor

from elbocli.core.prediction import logsnr_of
from elbocli.core.registry import plain
from elbocli.errors import FormatError, UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.pickles import Entries, Tree, attributes, class_name, contents, number, submodules
from elbocli.files.reading import reading
from elbocli.networks import edm2 as ours
from elbocli.networks import published as formats
from elbocli.networks.published import TABLES, Imported, Settings, Source, shape_of, source_format
from elbocli.networks.unet import UNetConfig, heads_of

# range of σ in sampling with EDM and EDM2, and σ of the data
LEAST_SIGMA = 0.002
MOST_SIGMA = 80.0
SIGMA_DATA = 0.5
LATENTS = "StabilityVAEEncoder"
PIXELS = "StandardRGBEncoder"
DRAWN = {"": (-1.2, 1.2), LATENTS: (-0.4, 1.0), PIXELS: (-0.8, 1.6)}  # encoder, or "" for EDM → mean and std of ln σ in training
ENCODERS = {1: PIXELS, 3: PIXELS, 4: LATENTS}  # number of channels → encoder that is assumed if a file doesn't name its encoder
BLOCK = re.compile(r"\b(enc|dec)\.(\d+)x\2_(conv|down|up|in[01]|block\d+)\.")  # as in enc.64x64_block0.
MARKS = ("emb_fourier.freqs", "emb_noise.weight", "out_gain")  # endings of weight names by which EDM2's network is recognised
LABELS = "map_label.weight"
READ = {"", "EDMPrecond", "DhariwalUNet"}  # classes of EDM that elbo can import; "": a state dict, which has no class
CONSTANTS: dict[str, float | list[int]] = {  # attribute of EDM2's modules → the only value that elbo can import
    "label_balance": ours.CLASS,
    "concat_balance": ours.JOINED,
    "res_balance": ours.RESIDUAL,
    "attn_balance": ours.ATTENTION,
    "clip_act": ours.CLIP,
    "resample_filter": [1, 1],
}


# Shared by EDM and EDM2.


def objective(module: Tree, loss: Entries, kind: str) -> Settings:
    """Return prediction, weighting, schedule and range of λ of a network's training.

    module: pickled network. loss: attributes of the pickled loss function. kind: class name of EDM2's encoder; '' for EDM.
    """
    mean, std = (plain(number(loss, name, value)) for name, value in zip(("P_mean", "P_std"), DRAWN[kind]))
    sigma_data = plain(number(attributes(module), "sigma_data", SIGMA_DATA))
    return {
        "prediction": f"edm:sigma_data={sigma_data}",
        "weighting": f"edm:mean={mean},std={std},sigma_data={sigma_data}",
        "schedule": f"edm:mean={mean},std={std}",
        "logsnr_min": logsnr_of(MOST_SIGMA),
        "logsnr_max": logsnr_of(LEAST_SIGMA),
    }


class SharedConfig(TypedDict):
    """Fields of UNetConfig and EDM2Config."""

    image_size: int
    image_channels: int
    blocks: int
    attention: tuple[int, ...]
    dropout: float


class Layout(NamedTuple):
    """Layout of a network of EDM or EDM2.

    config: fields of its config. widths: channels at each side. modules: elbo's name of a module → the file's name.
    """

    config: SharedConfig
    widths: list[int]
    modules: dict[str, str]


def layout(tensors: Mapping[str, Tensor], module: Tree, format: str) -> Layout:
    """Return the layout that a file's weights show.

    module: pickled network. format: 'edm' or 'edm2'.
    """
    names = TABLES[format]
    qkv = TABLES[format]["block"]["attention.qkv"]
    places = [match.groups() for match in map(BLOCK.match, tensors) if match]
    sides = sorted({int(side) for _, side, _ in places}, reverse=True)
    if not sides:
        raise FormatError("has no blocks of EDM's networks, such as enc.64x64_block0; choose another --format")
    blocks = len({place for way, _, place in places if way == "enc" and place.startswith("block")})
    own = [f"block{index}" for index in range(blocks + 1)]
    below = f"dec.{sides[-1]}x{sides[-1]}"
    first = f"enc.{sides[0]}x{sides[0]}_conv"
    ways = {
        "down": [f"enc.{side}x{side}_{name}" for side in sides for name in ("down", *own[:-1])][1:],
        "middle": [f"{below}_in0", f"{below}_in1"],
        "up": [f"dec.{side}x{side}_{name}" for side in reversed(sides) for name in ("up", *own)][1:],
    }
    starts = {side: f"enc.{side}x{side}_block0." for side in sides}
    config: SharedConfig = {
        "image_size": sides[0],
        "image_channels": shape_of(tensors, f"{first}.weight")[1],
        "blocks": blocks,
        "attention": tuple(side for side, start in starts.items() if f"{start}{qkv}.weight" in tensors),
        "dropout": float(max((number(told, "dropout", 0.0) for _, told in submodules(module)), default=0.0)),
    }
    widths = [shape_of(tensors, f"{start}{names['block']['conv1']}.weight")[0] for start in starts.values()]
    modules = {"first": first, **names["network"], **formats.block_modules(ways, names["block"])}
    return Layout(config, widths, modules)


def _convert_layout(name: str, tensor: Tensor) -> Tensor:
    # EDM orders attention's channels by head, then by channel, then as q, k and v.
    if ".attention.qkv." in name:
        return tensor.unflatten(0, (heads_of(len(tensor) // 3), -1, 3)).movedim(2, 0).flatten(0, 2)
    return tensor if tensor.dim() else tensor[None]


# EDM


def _is_edm(names: Iterable[str]) -> bool:
    return any(name.endswith("map_layer0.weight") for name in names) and any(map(BLOCK.search, names))


@source_format("edm", recognises=lambda source: any(map(_is_edm, formats.entries(source.tree).values())))
def edm(source: Source, options: ImportOptions) -> Imported:
    """Import a checkpoint of EDM."""
    where = source.path
    held, averaged, module = formats.state_dict(source, options, meant=_is_edm)
    strange = {class_name(module), class_name(contents(attributes(module).get("_modules")).get("model"))} - READ
    if strange:
        raise FormatError(f"{where}: can't read {' and '.join(sorted(strange))}; elbo reads only DhariwalUNet in EDMPrecond")
    tensors = {name.removeprefix("model."): each for name, each in held.items()}
    if LABELS in tensors:
        tensors[LABELS] = tensors[LABELS].T
    width, channels = shape_of(tensors, "map_layer0.weight")
    shared, widths, modules = layout(tensors, module, "edm")
    with reading(where):
        config = UNetConfig(
            **shared,
            levels=tuple(width / channels for width in widths),
            num_classes=len(tensors.get(LABELS, ())),
            channels=channels,
            middle_attention=f"{modules['middle.0.attention.qkv']}.weight" in tensors,
            embedding=0 if width == 4 * channels else width,
            code="logsnr:factor=-0.125",
        )
    # Only training needs the layer that knows how an image was augmented.
    weights = formats.fitted(tensors, config, source, modules, _convert_layout, r"map_augment\.weight|.*\.resample_filter")
    if isinstance(module, dict):
        source.notes.append(f"{where}: a state dict, whose network is taken to have EDM's preconditioning (EDMPrecond)")
    loss = contents(source.tree).get("loss_fn")
    loss = attributes(loss) if class_name(loss) == "EDMLoss" else {}
    return Imported(config, weights, objective(module, loss, ""), averaged)


# EDM2


def _is_edm2(names: Iterable[str]) -> bool:
    return all(any(name.endswith(mark) for name in names) for mark in MARKS)


def _check_constants(module: Tree) -> None:
    for name, told in submodules(module):
        wanted = dict(CONSTANTS)
        if told.get("num_heads"):
            wanted["num_heads"] = heads_of(int(number(told, "out_channels", 0)))
        for key, value in wanted.items():
            found = told.get(key, value)
            if (list(found) if isinstance(found, tuple) else found) != value:
                raise FormatError(
                    f"{name or 'the network'} has {key} {found!r}; elbo can import only networks with {key} {value}"
                )


def _encoder(tree: Tree, channels: int) -> str:
    """Return the class name of the file's encoder, or of the usual encoder for `channels`. Raises FormatError."""
    encoder = contents(tree).get("encoder")
    told = attributes(encoder)
    name = ENCODERS.get(channels, "") if encoder is None else class_name(encoder)
    if name not in (LATENTS, PIXELS) or told.get("_init_kwargs") or told.get("_init_args"):
        raise FormatError(f"can't read encoder {name!r}; elbo reads only {LATENTS} and {PIXELS}, with default arguments")
    return name


@source_format(
    "edm2",
    recognises=lambda source: any(map(_is_edm2, formats.entries(source.tree).values())),
    takes=(*formats.STATE_DICT_OPTIONS, "autoencoder"),
)
def edm2(source: Source, options: ImportOptions) -> Imported:
    """Import a checkpoint of EDM2."""
    held, averaged, module = formats.state_dict(source, options, meant=_is_edm2)
    _check_constants(module)
    tensors = {name.removeprefix("unet."): each for name, each in held.items()}
    shared, widths, modules = layout(tensors, module, "edm2")
    channels = math.gcd(*widths)
    shared["image_channels"] -= 1
    with reading(source.path):
        config = ours.EDM2Config(
            **shared,
            levels=tuple(width // channels for width in widths),
            num_classes=shape_of(tensors, "emb_label.weight")[1] if "emb_label.weight" in tensors else 0,
            channels=channels,
        )
    weights = formats.fitted(tensors, config, source, modules, _convert_layout, r"logvar_(fourier|linear)\..*")
    kind = _encoder(source.tree, config.image_channels)
    if kind == PIXELS and options.autoencoder is not None:
        raise UsageError(f"--autoencoder: {source.path} is a network of pixels; leave this option out")
    loss = contents(source.tree).get("loss_fn")
    loss = contents(loss) or attributes(loss)
    if "P_mean" not in loss:
        mean, std = DRAWN[kind]
        source.notes.append(f"the file doesn't say the noise in its training: taken as ln sigma ~ N({mean:g}, {std:g}^2)")
    data = formats.latents_of(config, source, options, "edm2") if kind == LATENTS else {}
    return Imported(config, weights, objective(module, loss, kind), averaged, data)
