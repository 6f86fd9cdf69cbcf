"""EDM2's checkpoints: network pickles of pixels and of latents, training states, state dicts.

Source: Karras et al. 2024, arXiv:2312.02696. Its pickles bring their own source code along, which is not run; see
files/pickles.py. Names, shapes, order and constants are as its published code has them, and half precision makes XS as
large as its published file; no such file was read. The head that learns the weighting of the loss is left out: it serves
training alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from elbocli.errors import FormatError, UsageError
from elbocli.files.latents import CONVENTIONS, UNKNOWN, LatentSpace
from elbocli.files.pickles import Foreign, class_name, module_state, module_tensors
from elbocli.importer.edm2_weights import by_our_names, check_constants, config_of_names
from elbocli.importer.edm_family import LICENCE, known, objective
from elbocli.importer.formats import (
    AUTOENCODER,
    FACTOR,
    NAMED,
    Imported,
    ImportOptions,
    Source,
    called,
    fitted,
    inventory,
    is_weights,
    latents_of,
    source_format,
    state_dict,
    unwrapped,
)
from elbocli.nn.networks.edm2 import EDM2Config

LATENTS, PIXELS = "StabilityVAEEncoder", "StandardRGBEncoder"
DRAWN = {LATENTS: (-0.4, 1.0), PIXELS: (-0.8, 1.6)}
"""Mean and standard deviation of ln σ that networks of each kind are trained with, where a file doesn't say."""
CONVENTION = "edm2"
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


def _kind(content: Mapping[Any, Any], config: EDM2Config, where: Path) -> str:
    """The encoder that made what the network sees, LATENTS or PIXELS. Raises FormatError for another."""
    encoder = content.get("encoder")
    name = class_name(encoder) or inventory(encoder)
    if name in DRAWN:
        told = known(encoder)
        if told.get("_init_kwargs") or told.get("_init_args"):
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
        return latents_of(options.autoencoder, CONVENTION, size, channels, where)
    declared = CONVENTIONS[CONVENTION]
    shift, scale = declared.make({}, channels)
    notes.append(f"taken as latents of {AUTOENCODER}; 'elbo sample' needs its folder: --autoencoder DIR, here or there")
    facts = (declared.traits.input, AUTOENCODER, UNKNOWN, FACTOR * size, False)
    return LatentSpace(CONVENTION, shift, scale, *facts).attributes()


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
    if "P_mean" not in known(loss):
        notes.append(f"doesn't say the noise it was trained with: taken as ln sigma ~ N({usual[0]:g}, {usual[1]:g}^2)")
    data = {"image_size": config.image_size, "channels": config.image_channels, "num_classes": config.num_classes}
    if kind == LATENTS:
        data |= _latents(config, options, where, notes)
    settings = objective(held.module, loss, usual)
    return Imported(config, weights, settings, data, held.averaged, LICENCE, [*notes, *more])
