"""Folders of diffusers: a pipeline with a UNet2DModel and its scheduler, or the model alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.files import scheduler_config, tensor_files
from elbocli.files.records import read_json
from elbocli.importer.formats import Imported, ImportOptions, Source, fitted, renamed, source_format
from elbocli.importer.levels import range_settings
from elbocli.nn.diffusers_extra import CONFIG, WEIGHTS
from elbocli.nn.networks.diffusers_unet import CLASS, SETTINGS, DiffusersUNetConfig, checked_settings

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
BETAS = {"linear": "t-linear", "scaled_linear": "t-scaled-linear", "squaredcos_cap_v2": "t-squaredcos"}
OLD_ATTENTION = [
    (rf"(.*\.attentions\.\d+)\.{old}\.(weight|bias)", rf"\1.{new}.\2")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
]
"""Names in weights of before 2023."""
NEAR = 1e-3
"""Timesteps that a level may be off by."""


def _folder(path: Path) -> Path:
    """The folder of the network in that of a pipeline."""
    return path / "unet" if (path / "unet" / CONFIG).is_file() else path


def _recognised(source: Source) -> bool:
    return (_folder(source.path) / CONFIG).is_file()


@source_format(
    "diffusers",
    about=f"A folder of diffusers with a {CLASS}: a pipeline, or config.json and {WEIGHTS}.",
    source="diffusers; google/ddpm-cifar10-32, google/ddpm-church-256 and the like",
    licence="of google/ddpm-*: Apache 2.0; of others: see their pages",
    recognises=_recognised,
    takes=("levels", "size", "classes"),
)
def diffusers(source: Source, options: ImportOptions) -> Imported:
    """Take the network as diffusers computes it, and prediction and levels from the scheduler beside it."""
    folder = _folder(source.path)
    found = read_json(folder / CONFIG)
    kind = found.get("_class_name")
    if kind != CLASS:
        raise FormatError(
            f"{folder / CONFIG}: _class_name is {str(kind)[:60]!r}; of diffusers' networks elbo reads {CLASS} alone, others as "
            "a program (elbocli.export_network makes one)"
        )
    if found.get("class_embed_type") is not None:
        raise FormatError(
            f"{folder / CONFIG}: class_embed_type is {found['class_embed_type']!r}, expected null, a table"
        )
    known, notes = _scheduled(source, options)
    here = {"sample_size", "in_channels", "out_channels", "num_class_embeds", "class_embed_type", "dropout"}
    ignored = [key for key in found if key not in here and key not in SETTINGS and not key.startswith("_")]
    ignored = [key for key in ignored if key != "num_train_timesteps"]  # of a learned table of them
    notes += [f"{CONFIG} says {key}, which diffusers has no use for" for key in ignored]
    model = json.dumps({key: found[key] for key in SETTINGS if key in found})
    checked_settings(model, folder / CONFIG)
    channels = _whole(folder, found, "in_channels", 3)
    rows = _whole(folder, found, "num_class_embeds", 0)
    classes = rows if options.classes is None else options.classes
    if not rows - 1 <= classes <= rows or (rows and not classes):
        raise UsageError(
            f"{folder}: its table has {rows} classes; --classes {max(rows - 1, 0)} takes the last for 'no class', no other number "
            "will do"
        )
    out = _whole(folder, found, "out_channels", 3)
    if out not in (channels, 2 * channels):
        raise FormatError(
            f"{folder / CONFIG}: takes {channels} channels and gives {out}, expected as many or twice as many"
        )
    config = DiffusersUNetConfig(
        image_size=_size(folder, found, options),
        image_channels=channels,
        num_classes=classes,
        model=model,
        dropout=float(found.get("dropout") or 0.0),
        code=known.pop("code"),
        null_class=classes < rows,
        variance=out == 2 * channels,
    )
    tensors, file = _weights(folder)
    weights, more = fitted(tensors, config, file)
    settings = {**known, "label_dropout": 0.1 if config.null_class else 0.0}
    data = {"image_size": config.image_size, "num_classes": classes, "channels": channels}
    return Imported(config, weights, settings, data, False, "see the page that it is from", notes + more)


def _whole(folder: Path, found: dict[str, Any], key: str, default: int) -> int:
    value = default if found.get(key) is None else found[key]
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise FormatError(f"{folder / CONFIG}: {key} is {str(value)[:40]}, expected a whole number of sane size")
    return value


def _size(folder: Path, found: dict[str, Any], options: ImportOptions) -> int:
    """The side of its images: as the user says, else as it was trained."""
    sides = found.get("sample_size")
    sides = sides if isinstance(sides, list) else [sides]
    if options.size is not None:
        return options.size
    if sides == [None]:
        raise UsageError(f"{folder}: doesn't say the size of its images; add --size")
    if len(set(map(str, sides))) != 1 or type(sides[0]) is not int or not 1 <= sides[0] <= 1 << 14:
        raise FormatError(
            f"{folder / CONFIG}: sample_size is {str(sides)[:40]}, expected one whole number; elbo's are square"
        )
    return int(sides[0])


def _weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """(the weights by the names that diffusers has for them now, their file). Raises FormatError, also for pickles."""
    stem = WEIGHTS.removesuffix(".safetensors")
    files = [
        [folder / WEIGHTS],
        sorted(folder.glob(f"{stem}-*-of-*.safetensors")),
        [folder / f"{stem}.fp16.safetensors"],
    ]
    found = next((parts for parts in files if parts and all(part.is_file() for part in parts)), None)
    if found is None:
        others = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".bin", ".safetensors", ".json"))
        raise FormatError(
            f"{folder}: no weights in {WEIGHTS} or its parts, found {', '.join(others)[:200] or 'nothing'}; only safetensors "
            f"are read: {CLASS}.from_pretrained(…).save_pretrained(…, safe_serialization=True) in diffusers writes them"
        )
    tensors = {f"model.{name}": value for part in found for name, value in tensor_files.load(part).items()}
    return renamed(tensors, [*OLD_ATTENTION, ("(.*)", r"\1")], found[0]), found[0]


def _scheduled(source: Source, options: ImportOptions) -> tuple[dict[str, Any], list[str]]:
    """Settings that the scheduler says, and `code`; and what the user should know. Options stand above it.

    Raises UsageError where neither says it, FormatError for a scheduler whose levels elbo can't tell a network.
    """
    places = [
        source.path / "scheduler" / SCHEDULER,
        source.path / SCHEDULER,
        source.path.parent / "scheduler" / SCHEDULER,
    ]
    path = next((place for place in places if place.is_file()), None)
    if options.levels:
        known, notes = range_settings(options.levels, options)
        return {**known, "code": parse_level_code(options.levels).spec}, notes
    if path is None:
        raise UsageError(
            f"{source.path}: no {SCHEDULER} says how it was trained; add --prediction and --levels (t:linear, t:squaredcos, …)"
        )
    config = scheduler_config.load(path)
    prediction, curve = scheduler_config.read_config(path)
    if prediction == "u":
        shift = float(getattr(curve, "by", 0.0))
        schedule = f"fm-ot:shift={shift:.12g}" if shift else "fm-ot"
        count = config.get("num_train_timesteps", 1000)
        flow = {"prediction": "u-path", "weighting": f"u-mse@{schedule}", "schedule": schedule}
        known, notes = range_settings(f"flow:factor={count}", options)
        return {**known, **flow, "code": f"flow:factor={count}"}, notes
    return _timesteps(path, config, prediction, curve)


def _timesteps(path: Path, config: dict[str, Any], prediction: str, curve: Any) -> tuple[dict[str, Any], list[str]]:
    """Settings of a network that was told which of its timesteps it is."""
    name = BETAS.get(str(config.get("beta_schedule")))
    count, level = config.get("num_train_timesteps"), getattr(curve, "level", None)
    if name is None or level is None or config.get("trained_betas") is not None:
        raise FormatError(
            f"{path}: timesteps of {config.get('beta_schedule')!r} have no level code; --levels says another"
        )
    start, end = config.get("beta_start"), config.get("beta_end")
    ends = "" if name == "t-squaredcos" else f",start={start},end={end}"
    code = parse_level_code(f"{name}:count={count}{ends}")
    apart = (code(level.flip(0)) - curve.time.flip(0) * float(count or 1) + 0.5).abs().max()
    if float(apart) > NEAR:
        raise FormatError(
            f"{path}: rescaled timesteps (snr_shift_scale, rescale_betas_zero_snr) have no level code; --levels says another"
        )
    low, high = curve.support
    known = {"prediction": prediction, "code": code.spec, "logsnr_min": low, "logsnr_max": high}
    return {**known, "schedule": code.spec, "weighting": f"{prediction}-mse@{code.spec}"}, []
