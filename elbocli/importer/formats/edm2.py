"""EDM2's checkpoints: network pickles of pixels and of latents, training states, state dicts.

Source: Karras et al. 2024, arXiv:2312.02696. Its pickles bring their own source code along, which is not run; see
files/torch_pickle.py. Names, shapes, order and constants are as its published code has them, and half precision makes XS as
large as its published file; no such file was read. The head that learns the weighting of the loss is left out: it serves
training alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.logsnr import logsnr_of
from elbocli.core.registry import plain
from elbocli.errors import FormatError, UsageError
from elbocli.files.latents import CONVENTIONS, UNKNOWN, LatentSpace
from elbocli.files.pickled_module import Foreign, class_name, module_state, module_tensors
from elbocli.importer.edm2_weights import by_our_names, check_constants, config_of_names
from elbocli.importer.formats import (
    NAMED,
    Imported,
    ImportOptions,
    Source,
    called,
    fitted,
    inventory,
    is_weights,
    source_format,
    state_dict,
    unwrapped,
)
from elbocli.nn.networks.edm2 import EDM2Config

LICENCE = "CC BY-NC-SA 4.0, for the weights that NVIDIA published"
LEAST_SIGMA, MOST_SIGMA, SIGMA_DATA = 0.002, 80.0, 0.5
LATENTS, PIXELS = "StabilityVAEEncoder", "StandardRGBEncoder"
DRAWN = {LATENTS: (-0.4, 1.0), PIXELS: (-0.8, 1.6)}
"""Mean and standard deviation of ln σ that networks of each kind are trained with, where a file doesn't say."""
CONVENTION, AUTOENCODER, FACTOR = "edm2", "stabilityai/sd-vae-ft-mse", 8
LATENT_CHANNELS, PIXEL_CHANNELS = 4, (1, 3)
MARKS = ("emb_fourier.freqs", "emb_noise.weight", "out_gain")
"""Names by which the network is told, with or without its preconditioning's prefix."""
PREFIX = "unet."
UNCERTAINTY = re.compile(r"logvar_(fourier|linear)\..*")


class Held(NamedTuple):
    """tensors: by names within the network. module: the pickled one, None where there are state dicts. notes: on the choice."""

    tensors: dict[str, Tensor]
    averaged: bool
    module: Any
    notes: list[str]


def _content(source: Source) -> Mapping[Any, Any]:
    """The file's dict; a snapshot's is of EDM2's own class, EasyDict."""
    tree = source.tree
    if isinstance(tree, Foreign) and tree.items:
        return tree.items
    return tree if isinstance(tree, dict) else {}


def _averages(content: Mapping[Any, Any]) -> tuple[list[Any], list[Any]]:
    """(relative standard deviations, state dicts) of the averages in a training state."""
    ema = content.get("ema")
    held = ema.items if isinstance(ema, Foreign) else ema
    if not isinstance(held, dict) or not isinstance(held.get("emas"), list):
        return [], []
    stds = held.get("stds")
    return stds if isinstance(stds, list) else [], [each for each in held["emas"] if is_weights(each)]


def _dicts(source: Source) -> Iterator[Mapping[str, Tensor]]:
    """All weights by name in a file."""
    content = _content(source)
    for each in (source.tree, *content.values(), *_averages(content)[1]):
        if is_weights(each):
            yield each
        elif isinstance(each, Foreign):
            try:
                yield module_tensors(each)
            except FormatError:
                continue


def _recognises(source: Source) -> bool:
    return any(all(any(name.endswith(mark) for name in names) for mark in MARKS) for names in _dicts(source))


def _held(source: Source, options: ImportOptions) -> Held:
    """The weights that are asked for, else the others."""
    content, where = _content(source), source.path
    module = next((each for each in (content.get("ema"), source.tree) if _is_network(each)), None)
    if module is not None:
        return Held(called(unwrapped(module_tensors(module)), options, where), True, module, [])
    stds, averages = _averages(content)
    if averages and options.weights == "ema":
        notes = []
        if len(averages) > 1:
            notes.append(f"of its {len(averages)} averages, of std {', '.join(map(str, stds))}, the first is taken")
        return Held(called(unwrapped(averages[0]), options, where), True, None, notes)
    return Held(*state_dict(source, options), None, [])


def _is_network(value: Any) -> bool:
    try:
        return isinstance(value, Foreign) and bool(module_state(value))
    except FormatError:
        return False


def _attributes(value: Any) -> Mapping[str, Any]:
    """Attributes that an object of EDM2's was to have: a pickled one's state, or what a training state keeps of it."""
    if isinstance(value, Foreign):
        meta = value.args[0] if value.args and isinstance(value.args[0], dict) else {}
        value = meta.get("state", value.state)
    return value if isinstance(value, dict) else {}


def _number(value: Any, name: str, usual: float) -> float:
    """A number that an object of EDM2's knows; `usual` where it doesn't."""
    found = _attributes(value).get(name, usual)
    return float(found) if type(found) in (int, float) else usual


def _kind(content: Mapping[Any, Any], config: EDM2Config, where: Path) -> str:
    """The encoder that made what the network sees, LATENTS or PIXELS. Raises FormatError for another."""
    encoder = content.get("encoder")
    name = class_name(encoder) or inventory(encoder)
    if name in DRAWN:
        known = _attributes(encoder)
        if known.get("_init_kwargs") or known.get("_init_args"):
            raise FormatError(f"{where}: its encoder has numbers of its own, which elbo doesn't read")
        return name
    if encoder is not None:
        raise FormatError(f"{where}: its encoder is {name}, expected {' or '.join(DRAWN)}")
    if config.image_channels in PIXEL_CHANNELS:
        return PIXELS
    if config.image_channels == LATENT_CHANNELS:
        return LATENTS
    raise FormatError(f"{where}: doesn't say what its images of {config.image_channels} channels are")


def _latents(config: EDM2Config, options: ImportOptions, where: Path, notes: list[str]) -> dict[str, Any]:
    """Facts on latents for the section data of a run. Raises FormatError where the autoencoder doesn't fit."""
    size, channels = config.image_size, config.image_channels
    if options.autoencoder is not None:
        from elbocli.nn.autoencoder import Autoencoder

        model = Autoencoder(options.autoencoder, torch.device("cpu"))
        if model.channels != channels:
            raise FormatError(
                f"{options.autoencoder}: its latents have {model.channels} channels, those of {where} have {channels}"
            )
        return model.space(CONVENTION, model.factor * size, False).attributes()
    declared = CONVENTIONS[CONVENTION]
    shift, scale = declared.make({}, channels)
    notes.append(f"taken as latents of {AUTOENCODER}; 'elbo sample' needs its folder: --autoencoder DIR, here or there")
    known = (declared.traits.input, AUTOENCODER, UNKNOWN, FACTOR * size, False)
    return LatentSpace(CONVENTION, shift, scale, *known).attributes()


@source_format(
    "edm2",
    about="EDM2's networks, of latents (edm2-img512-*.pkl) and of pixels (edm2-img64-*.pkl): network pickles, "
    "training-state-*.pt, state dicts.",
    source="Karras et al. 2024",
    licence=LICENCE,
    recognises=_recognises,
    takes=(*NAMED, "autoencoder"),
)
def edm2(source: Source, options: ImportOptions) -> Imported:
    where, content = source.path, _content(source)
    held = _held(source, options)
    notes = list(held.notes)
    dropped = [name for name in held.tensors if UNCERTAINTY.fullmatch(name)]
    if dropped:
        notes.append(
            f"{len(dropped)} tensors that learned the weighting of its loss are left out: elbo weighs by its own"
        )
    tensors = {name.removeprefix(PREFIX): each for name, each in held.tensors.items() if name not in dropped}
    dropout = 0.0 if held.module is None else check_constants(held.module, where)
    config, sides = config_of_names(tensors, dropout, where)
    weights, more = fitted(by_our_names(tensors, config, sides, where), config, where)
    kind = _kind(content, config, where)
    if kind == PIXELS and options.autoencoder is not None:
        raise UsageError(f"--autoencoder: {where} is a network of pixels; leave it out")
    loss, usual = content.get("loss_fn"), DRAWN[kind]
    if "P_mean" not in _attributes(loss):
        notes.append(f"doesn't say the noise it was trained with: taken as ln sigma ~ N({usual[0]:g}, {usual[1]:g}^2)")
    mean, std = (plain(_number(loss, name, value)) for name, value in zip(("P_mean", "P_std"), usual))
    sigma_data = plain(_number(held.module, "sigma_data", SIGMA_DATA))
    settings = {
        "prediction": f"edm:sigma_data={sigma_data}",
        "weighting": f"edm:mean={mean},std={std},sigma_data={sigma_data}",
        "schedule": f"edm:mean={mean},std={std}",
        "logsnr_min": logsnr_of(MOST_SIGMA),
        "logsnr_max": logsnr_of(LEAST_SIGMA),
        "label_dropout": 0.0,
    }
    data = {"image_size": config.image_size, "channels": config.image_channels, "num_classes": config.num_classes}
    if kind == LATENTS:
        data |= _latents(config, options, where, notes)
    return Imported(config, weights, settings, data, held.averaged, LICENCE, [*notes, *more])
