"""Formats of other programs' checkpoints.

Every module in this package declares formats, and is imported automatically. No code in a checkpoint is run.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.registry import Declaration, Registry, nearest
from elbocli.core.schedule import parse_level_code
from elbocli.core.schedule_curves import SCHEDULES, support_of
from elbocli.errors import FormatError, UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.latents import UNKNOWN
from elbocli.files.pickles import Entries, OpaqueObject, Tree, contents, module_tensors, read_torch_file
from elbocli.files.reading import file_sha256
from elbocli.files.records import JSON
from elbocli.files.yaml_text import read_yaml
from elbocli.networks import NetworkConfig, build_empty
from elbocli.networks.diffusers import Autoencoder, space_of
from elbocli.networks.unet import HEAD_WIDTH, heads_of

WRAPPERS = ("module.", "_orig_mod.")  # prefixes by DistributedDataParallel and torch.compile
STATE_DICTS = ("state_dict", "model_state_dict", "model", "net", "network")  # keys of the last weights; averages: "ema" in key
# names of files of weights
SUFFIXES = (".pt", ".pth", ".pkl", ".safetensors")
DIFFUSERS = "diffusion_pytorch_model"
STATE_DICT_OPTIONS = ("weights", "prefix", "rename")  # ImportOptions that `state_dict` uses
OWN = "import it as a network of a plug-in, by --plugin and --network"  # remedy for networks that elbo lacks
TABLES = read_yaml(Path(__file__).with_name("formats.yaml"))
# Published latent networks: autoencoder, downsampling factor, and scale of latents (sd-vae-ft-ema has the same).
AUTOENCODER = "stabilityai/sd-vae-ft-mse"
FACTOR = 8
SCALE = 0.18215


Settings = dict[str, str | float]  # field of TrainSettings → value


class Source:
    """File or folder to import.

    path: the file or folder; a folder that isn't diffusers' is replaced by its only file of weights. notes: messages to the user.
    """

    def __init__(self, path: Path):
        files = [file for file in path.glob("*") if file.suffix in SUFFIXES and not file.name.startswith(DIFFUSERS)]
        self.path = files[0] if len(files) == 1 else path
        self.notes = list[str]()

    @cached_property
    def tree(self) -> Tree:
        """Content of a file; for a folder, a dict with the names in it as keys. Raises FormatError.

        Types: dict, list, numbers, text, Tensor, and OpaqueObject for any other pickled object.
        Of several averages in a training state of EDM2, only the first is kept, under the key "ema".
        """
        if self.path.is_dir():
            return Entries.fromkeys(sorted(file.name for file in self.path.iterdir()))
        tree = read_torch_file(self.path)
        averages = contents(contents(tree).get("ema"))
        emas = averages.get("emas")
        if isinstance(emas, list) and emas:
            self.notes.append(f"ema is the first of {len(emas)} averages in the file, of std {averages.get('stds')!r}")
            tree = {**contents(tree), "ema": emas[0]}
        return tree

    @cached_property
    def sha256(self) -> str:
        """Digest of the file, or of the .json and .safetensors files in the folder."""
        if not self.path.is_dir():
            return file_sha256(self.path)
        files = sorted(file for end in ("json", "safetensors") for file in self.path.rglob(f"*.{end}"))
        lines = [f"{file.relative_to(self.path).as_posix()} {file_sha256(file)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


class Imported(NamedTuple):
    """A checkpoint translated to a network, weights and settings of elbo.

    weights: name in elbo's network → tensor. averaged: whether the weights are an average.
    settings: field of TrainSettings → value, for fields that follow from the checkpoint.
    data: further keys for the section `data` of config.yaml.
    """

    network: NetworkConfig
    weights: dict[str, Tensor]
    settings: Settings
    averaged: bool
    data: dict[str, JSON] = {}


@dataclass(frozen=True, repr=False)
class Format(Declaration[[Source, ImportOptions], Imported]):
    """Declared checkpoint format: a function (Source, ImportOptions) → Imported.

    about: sentence for `elbo import list`. licence: licence of the published weights.
    recognises: tells whether a Source has the format.
    takes: fields of ImportOptions that the format accepts, besides those that are also fields of TrainSettings.
    """

    about: str = field(kw_only=True)
    licence: str = field(kw_only=True)
    recognises: Callable[[Source], bool] = field(kw_only=True)
    takes: tuple[str, ...] = field(default=STATE_DICT_OPTIONS, kw_only=True)


FORMATS = Registry("format", Format)
Reader = Callable[[Source, ImportOptions], Imported]


def source_format(name: str, **traits: Any) -> Callable[[Reader], Reader]:
    """Return a decorator that declares a function as a format.

    traits: `source`, and fields of Format. Default of `about`, `source` and `licence`: texts in formats.yaml.
    """
    texts = {key: TABLES[name][key] for key in ("about", "source", "licence") if name in TABLES}
    return FORMATS.declare(name, **{**texts, **traits})


# Weights in a file.


def entries(tree: Tree) -> dict[str, dict[str, Tensor]]:
    """Return sets of weights in a file's content `tree`: top-level key → tensors by name. Key '': all of `tree`."""
    weights = {str(key): _named_tensors(value) for key, value in {"": tree, **contents(tree)}.items()}
    return {key: tensors for key, tensors in weights.items() if tensors}


def _named_tensors(value: Tree) -> dict[str, Tensor]:
    names = {str(key): tensor for key, tensor in contents(value).items() if isinstance(tensor, Tensor)}
    if not isinstance(value, dict) or len(names) < len(value):
        names = module_tensors(value)
    while names and all(name.startswith(WRAPPERS) for name in names):
        names = {name.partition(".")[2]: tensor for name, tensor in names.items()}
    return names


def state_dict(
    source: Source, options: ImportOptions, meant: Callable[[dict[str, Tensor]], bool] = bool
) -> tuple[dict[str, Tensor], bool, Tree]:
    """Return the weights that --weights chooses, renamed by --prefix and --rename.

    meant: function (tensors by name) → whether the format's network has such weights.
    Returns (tensors by name, whether the weights are an average, the file's entry with the weights).
    Raises FormatError if the file has no weights of the format, UsageError if --weights fits none or several.
    """
    candidates = {key: tensors for key, tensors in entries(source.tree).items() if meant(tensors)}
    if not candidates:
        raise FormatError(f"{source.path}: holds {inventory(source.tree)}, no weights of the chosen format; change --format")
    key = "" if "" in candidates else _choose(candidates, source, options.weights)
    entry = contents(source.tree)[key] if key else source.tree
    averaged = key != "net" if isinstance(entry, OpaqueObject) else "ema" in key.lower()
    prefix = options.prefix
    weights = {name.removeprefix(prefix): tensor for name, tensor in candidates[key].items() if name.startswith(prefix)}
    for rule in options.rename:
        old, equals, new = rule.partition("=")
        if not equals:
            raise UsageError(f"--rename {rule}: expected OLD=NEW")
        weights = {new + name.removeprefix(old) if name.startswith(old) else name: tensor for name, tensor in weights.items()}
    return weights, averaged, entry


def _choose(candidates: Collection[str], source: Source, wanted: str) -> str:
    averages = [key for key in candidates if "ema" in key.lower()]
    last = [key for key in STATE_DICTS if key in candidates][:1]
    choices = [wanted] if wanted in candidates else {"ema": averages or last, "model": last}.get(wanted, [])
    if len(choices) != 1:
        raise UsageError(
            f"{source.path}: holds weights under {', '.join(candidates)}; replace --weights {wanted} by one of these keys"
        )
    if wanted == "ema" and len(candidates) > 1:
        source.notes.append(
            f"{source.path}: takes the weights {choices[0]}; to choose, give --weights one of {', '.join(candidates)}"
        )
    return choices[0]


def inventory(tree: Tree) -> str:
    """Describe a file's content in a few words, for messages."""
    return ", ".join(map(repr, [*contents(tree)][:6])) or getattr(tree, "name", type(tree).__name__)


# Weights and networks.


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return a tensor's shape. Raises FormatError if the tensor is missing."""
    if name not in tensors:
        raise FormatError(f"lacks the weight {name!r} ({nearest(name, tensors)}); get the file again, or change --format")
    return tuple(tensors[name].shape)


def block_modules(blocks: Mapping[str, Sequence[str]], parts: Mapping[str, str]) -> dict[str, str]:
    """Return a map from elbo's module names to the file's, for all modules inside blocks.

    blocks: elbo's name of a list of blocks → the file's names of these blocks, in order.
    parts: elbo's name of a module within a block → the file's name.
    """
    return {
        f"{way}.{index}.{part}": f"{name}.{their}"
        for way, names in blocks.items()
        for index, name in enumerate(names)
        for part, their in parts.items()
    }


def fitted(
    tensors: Mapping[str, Tensor],
    config: NetworkConfig,
    source: Source,
    modules: Mapping[str, str] | None = None,
    convert_layout: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    without: str = "",
) -> dict[str, Tensor]:
    """Return a file's tensors as weights of elbo's network: name → tensor.

    modules: name of a module or weight: in elbo → in the file; None: names are equal.
    convert_layout: function (name in elbo, tensor in the file) → tensor in elbo, such as a transpose.
    without: regular expression for superfluous names to ignore.
    Raises FormatError if a weight is missing, superfluous, or of another shape.
    """
    where = source.path
    wanted = build_empty(config).state_dict()
    weights = {}
    unused = dict(tensors)
    for name, empty in wanted.items():
        module, _, kind = name.rpartition(".")
        theirs = name if modules is None else modules.get(name) or f"{modules[module]}.{kind}"
        shape = shape_of(tensors, theirs)
        value = tensors[theirs]
        with suppress(RuntimeError, IndexError):  # a tensor of another shape is refused below
            value = convert_layout(name, value)
        if value.shape != empty.shape:
            raise FormatError(f"{where}: {theirs!r} has shape {list(shape)}, not {list(empty.shape)}; {OWN}")
        weights[name] = value.to(empty.dtype)
        unused.pop(theirs, None)
    for name in unused:
        if not re.fullmatch(without, name):
            raise FormatError(f"{where}: has {name!r}, which elbo's network lacks; {OWN}")
    return weights


# Facts that shapes don't show.


class AttentionOrder(NamedTuple):
    """Number of attention heads, and order of the channels of q, k and v.

    heads: number of heads; 0: one head per `width` channels.
    outside: True: q of all heads, then k, then v. False: q, k and v of each head in turn.
    """

    heads: int = 0
    width: int = HEAD_WIDTH
    outside: bool = False

    def heads_of(self, channels: int) -> int:
        return self.heads or heads_of(channels, self.width)


def parse_attention(text: str) -> AttentionOrder:
    """Parse the text of --attention: `heads=4` or `width=64`; with `,new`: outside=True. Raises UsageError."""
    match = re.fullmatch(r"(heads|width)=([1-9][0-9]{0,8})(,new)?", text)
    if not match:
        raise UsageError(f"--attention {text}: expected heads=N or width=N, with ',new' for q, k and v in ADM's new order")
    return AttentionOrder(**{match[1]: int(match[2])}, outside=bool(match[3]))


def range_settings(code: str, source: Source, options: ImportOptions) -> Settings:
    """Return logsnr_min and logsnr_max of a network's discrete timesteps; {}: no timesteps.

    code: SPEC of the network's input for the noise level. source: gets a note if neither `code` nor `options` gives the range.
    """
    declared = parse_level_code(code)
    if declared.name in SCHEDULES:
        low, high = support_of(SCHEDULES[declared.name].bind(declared.params)())
        return {"logsnr_min": low, "logsnr_max": high}
    if None in (options.logsnr_min, options.logsnr_max):
        source.notes.append(
            "the range of logsnr in training is unknown: taken as -15 to 15; change it with --logsnr-min and --logsnr-max"
        )
    return {}


def timestep_settings(code: str, source: Source, options: ImportOptions, prediction: str = "eps") -> Settings:
    """Return settings of training on the mean squared error of `prediction` at a network's timesteps.

    code: SPEC of the network's input for the noise level; without timesteps, only `prediction` is returned.
    """
    spec = parse_level_code(code).spec
    ends = range_settings(code, source, options)
    trained = {"schedule": spec, "weighting": f"{prediction}-mse@{spec}", **ends} if ends else {}
    return {"prediction": prediction, **trained}


def latents_of(config: NetworkConfig, source: Source, options: ImportOptions, convention: str) -> dict[str, JSON]:
    """Return the keys of config.yaml that describe latents. Raises FormatError.

    convention: scaling of latents, a name in CONVENTIONS. options.autoencoder: folder; None: Stable Diffusion's autoencoder.
    """
    size = config.image_size
    channels = config.image_channels
    folder = options.autoencoder
    if folder is not None:
        model = Autoencoder(folder, torch.device("cpu"))
        if model.channels != channels:
            raise FormatError(f"{folder}: has {model.channels} channels, but {source.path} has {channels}; change --autoencoder")
        return asdict(model.space(convention, model.factor * size, False))
    source.notes.append(
        f"latents taken as those of {AUTOENCODER} or sd-vae-ft-ema; add its folder, --autoencoder DIR, here or to 'elbo sample'"
    )
    return asdict(space_of(convention, {"scaling_factor": SCALE}, channels, AUTOENCODER, UNKNOWN, FACTOR * size, False))


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
