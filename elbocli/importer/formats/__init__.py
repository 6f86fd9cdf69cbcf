"""Formats of other people's checkpoints: each module here declares one or more; being here is enough.

A format tells its files by their content, and translates one: into a network of elbo's, its weights, and what is known of
how it was trained. It reads tensors and containers alone (see files/pickles.py), and runs nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.registry import Registry, nearest
from elbocli.errors import FormatError, UsageError
from elbocli.files.hashing import file_sha256
from elbocli.files.pickles import Foreign, Found, read_torch_file
from elbocli.nn.autoencoder import Autoencoder
from elbocli.nn.networks import NetworkConfig, build

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""
STATE_DICTS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys that training scripts keep the last weights under; "ema" is part of those of averages."""
AUTOENCODER, FACTOR = "stabilityai/sd-vae-ft-mse", 8
"""The autoencoder of published networks of latents, by the name that it has where it is published."""


@dataclass(frozen=True)
class ImportOptions:
    """Facts of a checkpoint that its file doesn't hold and a user says; '' and None where nothing is said.

    weights: ema (the average), model (the last weights), or the key of others in the file. prediction, levels, weighting,
    schedule: SPECs. attention: heads=N or width=N, and ',new'. size, channels, classes: of the images or latents.
    null_class: label of 'no class'. logsnr_min, logsnr_max: the range it was trained on. prefix: of the names that are meant. rename: OLD=NEW, beginnings of names. network: FILE.py:CLASS. autoencoder: folder of the one that
    made the latents.
    """

    weights: str = "ema"
    prediction: str = ""
    levels: str = ""
    weighting: str = ""
    schedule: str = ""
    attention: str = ""
    size: int | None = None
    channels: int | None = None
    classes: int | None = None
    null_class: int | None = None
    logsnr_min: float | None = None
    logsnr_max: float | None = None
    prefix: str = ""
    rename: tuple[str, ...] = ()
    network: str = ""
    autoencoder: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Settings of TrainSettings that the user says, which override what a format knows."""
        said = {key: getattr(self, key) for key in ("prediction", "weighting", "schedule", "logsnr_min", "logsnr_max")}
        return {key: value for key, value in said.items() if value not in ("", None)}


class Source:
    """A file or folder to import. path: as given. notes: what was chosen of it."""

    def __init__(self, path: Path):
        self.path, self.notes = path, list[str]()

    @cached_property
    def found(self) -> Found:
        """Content of the file. Raises FormatError when it is no checkpoint."""
        return read_torch_file(self.path)

    @property
    def tree(self) -> Any:
        """Dicts, lists, numbers, text, tensors, Foreign; None for a folder, and for what is no checkpoint of torch."""
        if self.path.is_dir() or self.path.suffix == ".pt2":
            return None
        return self.found.tree

    @property
    def strangers(self) -> list[str]:
        """Names of what the file holds beside tensors and containers; none where it wasn't read as a checkpoint."""
        return self.found.strangers if "found" in vars(self) else []

    @cached_property
    def sha256(self) -> str:
        """Digest of the file; of a folder, that of its settings and weights and what they are called."""
        if not self.path.is_dir():
            return file_sha256(self.path)
        held = [*self.path.glob("*"), *self.path.glob("*/*")]
        files = sorted(file for file in held if file.suffix in (".json", ".safetensors") and file.is_file())
        lines = [f"{file.relative_to(self.path).as_posix()} {file_sha256(file)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Imported:
    """A checkpoint in elbo's words.

    weights: by the names of the network, as `fitted` gives them. settings: those of TrainSettings that are known. data: the
    section of config.yaml, at least image_size and num_classes. averaged: whether the weights are an average. licence: of
    the weights, a sentence. notes: what was dropped or guessed. files: names in the run's folder → the files that are copied
    there.
    """

    network: NetworkConfig
    weights: dict[str, Tensor]
    settings: dict[str, Any]
    data: dict[str, Any]
    averaged: bool
    licence: str
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)


class FormatTraits(NamedTuple):
    """about: a sentence for `elbo import list`. licence: of the published weights. recognises: tells a Source by its content.

    takes: names of ImportOptions that mean something to it, beside those of settings, which all take.
    """

    about: str
    licence: str
    recognises: Callable[[Source], bool]
    takes: tuple[str, ...]


NAMED = ("weights", "prefix", "rename")
"""Options that every format takes whose files hold weights by names: see `state_dict`."""


FORMATS: Registry[FormatTraits] = Registry("format")
Translate = Callable[[Source, ImportOptions], Imported]


def source_format(
    name: str,
    *,
    about: str,
    source: str,
    licence: str,
    recognises: Callable[[Source], bool],
    takes: tuple[str, ...] = NAMED,
) -> Callable[[Translate], Translate]:
    """Declare a function (Source, ImportOptions) → Imported under the name that --format takes.

    It raises FormatError, which names the file, what was found and what to do.
    """
    return FORMATS.declare(name, source=source, traits=FormatTraits(about, licence, recognises, takes))


def is_weights(value: Any) -> bool:
    """Tell whether a value is a state dict: names and tensors."""
    return isinstance(value, dict) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def entries(tree: Any) -> dict[str, dict[str, Tensor]]:
    """Return the weights by name in a file by their keys; a state dict alone has the key ''."""
    held = {"": tree, **tree} if isinstance(tree, dict) else {}
    return {str(key): unwrapped(value) for key, value in held.items() if is_weights(value)}


def chosen(keys: Iterable[str], source: Source, options: ImportOptions) -> str:
    """Return the key of the weights that --weights asks for, and note which it is where a file holds several.

    Raises UsageError where it holds none of that name, or several averages and none is named.
    """
    held, wanted = list(keys), options.weights
    averages = [key for key in held if "ema" in key.lower()] if wanted == "ema" else []
    last = [key for key in STATE_DICTS if key in held] if wanted in ("ema", "model") else []
    if wanted not in held and (len(averages) > 1 or not (averages or last)):
        raise UsageError(f"{source.path}: holds weights under {', '.join(held)}; choose by --weights KEY")
    key = wanted if wanted in held else [*averages, *last][0]
    others = " or ".join(other for other in held if other != key)
    if wanted == "ema" and (others or not averages):
        why = "" if averages else ", as there is no average"
        source.notes.append(
            f"{source.path}: takes the weights {key}{why}{others and f'; --weights KEY takes {others}'}"
        )
    return key


def state_dict(source: Source, options: ImportOptions) -> tuple[dict[str, Tensor], bool]:
    """(tensors by name, whether they are an average) of a state dict, or of the checkpoint of a training script.

    Wrappers' prefixes are taken off, and names are as --prefix and --rename say. Raises FormatError where there is none.
    """
    held = entries(source.tree)
    if not held:
        raise FormatError(f"{source.path}: holds no weights by names; it holds {inventory(source.tree)}")
    key = "" if "" in held else chosen(held, source, options)
    return called(held[key], options, source.path), "ema" in key.lower()


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors without the prefixes that wrappers put before all names."""
    names = dict(tensors)
    for wrapper in (*WRAPPERS, *WRAPPERS):
        if names and all(name.startswith(wrapper) for name in names):
            names = {name.removeprefix(wrapper): tensor for name, tensor in names.items()}
    return names


def called(tensors: Mapping[str, Tensor], options: ImportOptions, where: object) -> dict[str, Tensor]:
    """Return the tensors whose names begin with --prefix, without it, and called as --rename says.

    Raises UsageError for a --rename that isn't OLD=NEW, FormatError where no name begins so.
    """
    rules = [rule.partition("=") for rule in options.rename]
    if any(not old or not equals for old, equals, _ in rules):
        raise UsageError(f"--rename {options.rename[0]}: expected OLD=NEW")
    found = {
        name.removeprefix(options.prefix): each for name, each in tensors.items() if name.startswith(options.prefix)
    }
    if not found:
        raise FormatError(f"{where}: no name begins with {options.prefix!r}; the first is {next(iter(tensors), '')!r}")
    for old, _, new in rules:
        if not any(name.startswith(old) for name in found):
            raise FormatError(
                f"{where}: no name begins with {old!r}, which --rename says; the first is {next(iter(found))!r}"
            )
        found = {new + name.removeprefix(old) if name.startswith(old) else name: each for name, each in found.items()}
    return found


def inventory(tree: Any) -> str:
    """Say what a file holds, for messages."""
    if isinstance(tree, dict):
        return ", ".join(repr(key) for key in list(tree)[:6]) + (" …" if len(tree) > 6 else "")
    return tree.name.replace(" ", ".") if isinstance(tree, Foreign) else type(tree).__name__


def renamed(tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str | None]], where: object) -> dict[str, Tensor]:
    r"""Return tensors by elbo's names. rules: (regular expression of a whole name, its new name with \1 …; None drops it).

    The first rule that fits decides. Raises FormatError for a name that none fits, and for two that become one.
    """
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        fit = next(((match, new) for pattern, new in compiled if (match := pattern.fullmatch(name))), None)
        if fit is None:
            raise FormatError(f"{where}: has {name[:80]!r}, which this format doesn't know; name another --format")
        match, new = fit
        if new is None:
            continue
        key = match.expand(new)
        if key in found:
            raise FormatError(f"{where}: has {name[:80]!r} beside another of the same meaning")
        found[key] = tensor
    return found


def fitted(weights: Mapping[str, Tensor], config: NetworkConfig, where: object) -> tuple[dict[str, Tensor], list[str]]:
    """(the weights in the network's order, in float32; notes), compared with the network by names and shapes.

    Raises FormatError with the first that is missing, is not the network's, or has another shape.
    """
    with torch.device("meta"):
        wanted = build(config).state_dict()
    for name in wanted:
        if name not in weights:
            raise FormatError(f"{where}: lacks the network's {name}; {nearest(name, weights, 5)}")
    for name, tensor in weights.items():
        if name not in wanted:
            raise FormatError(f"{where}: has {name}, which the network has no place for; is it of another network?")
        if tensor.shape != wanted[name].shape:
            raise FormatError(
                f"{where}: {name} has the shape {list(tensor.shape)}, the network's is {list(wanted[name].shape)}"
            )
        if not tensor.is_floating_point() and wanted[name].is_floating_point():
            raise FormatError(f"{where}: {name} holds {tensor.dtype}, expected floating-point numbers")
    kinds = {tensor.dtype for name, tensor in weights.items()} - {wanted[name].dtype for name in wanted}
    notes = [
        f"{where}: weights in {str(kind).removeprefix('torch.')} become float32" for kind in sorted(kinds, key=str)
    ]
    return {name: weights[name].to(wanted[name].dtype) for name in wanted}, notes


def latents_of(folder: Path, convention: str, size: int, channels: int, where: Path) -> dict[str, Any]:
    """Facts on latents of the autoencoder in a folder, for the section data of a run. Raises FormatError where it doesn't fit.

    size, channels: of the latents that the network at `where` sees.
    """
    model = Autoencoder(folder, torch.device("cpu"))
    if model.channels != channels:
        raise FormatError(f"{folder}: its latents have {model.channels} channels, those of {where} have {channels}")
    return model.space(convention, model.factor * size, False).attributes()


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
