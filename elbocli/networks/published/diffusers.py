"""Import UNet2DModels of diffusers, with or without their scheduler."""

import json
from pathlib import Path

from torch import Tensor

from elbocli.core.schedule import parse_level_code
from elbocli.core.schedule_curves import Shifted
from elbocli.errors import FormatError, UsageError
from elbocli.files import tensor_files
from elbocli.files.import_options import ImportOptions
from elbocli.files.reading import reading
from elbocli.files.records import Count, convert, read_json
from elbocli.files.schedule_file import read_config
from elbocli.networks import published as formats
from elbocli.networks.diffusers import CONFIG, UNET, WEIGHTS, DiffusersUNetConfig
from elbocli.networks.published import OWN, TABLES, Imported, Settings, Source, source_format

SCHEDULER = "scheduler_config.json"
BETAS = {"linear": "t-linear", "scaled_linear": "t-scaled-linear", "squaredcos_cap_v2": "t-squaredcos"}
# names of attention modules in weights from before 2023 → their present names
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
NEAR = 1e-3  # largest accepted difference between the scheduler's timestep and the timestep by elbo's formula


def _folder(path: Path) -> Path:
    return path / "unet" if (path / "unet" / CONFIG).is_file() else path


@source_format(
    "diffusers",
    recognises=lambda source: (_folder(source.path) / CONFIG).is_file(),
    takes=("noise_input", "size", "num_classes"),
)
def diffusers(source: Source, options: ImportOptions) -> Imported:
    """Import a network of diffusers, and its noise levels."""
    folder = _folder(source.path)
    where = folder / CONFIG
    found = read_json(where)
    if (found.get("_class_name"), found.get("class_embed_type")) != (UNET, None):
        raise FormatError(
            f"{where}: is a {found.get('_class_name')}; only a {UNET} without class_embed_type can be imported; {OWN}"
        )
    settings, code = _scheduled(source, options)
    numbers = (("in_channels", 3), ("out_channels", 3), ("num_class_embeds", 0))
    channels, out, rows = (convert(found.get(key) or usual, Count, f"{where}: {key}") for key, usual in numbers)
    classes = rows if options.num_classes is None else options.num_classes
    if not rows - 1 <= classes <= rows or (rows and not classes):
        raise UsageError(
            f"--num-classes {classes}: the network in {folder} has {rows} classes; give {rows}, or one less if its last class means 'no class'"
        )
    side = found.get("sample_size")
    size = options.size or (side[0] if isinstance(side, list) and side == side[:1] * 2 else side)
    if size is None:
        raise UsageError(f"{folder}: doesn't say the size of its images; add --size")
    config = DiffusersUNetConfig(
        image_size=convert(size, Count, f"{where}: sample_size"),
        image_channels=channels,
        num_classes=classes,
        model=json.dumps({key: found[key] for key in TABLES["diffusers"]["settings"] if key in found}),
        dropout=convert(found.get("dropout") or 0.0, float, f"{where}: dropout"),
        code=code,
        null_class=classes < rows,
        variance=out == 2 * channels,
    )
    weights = formats.fitted(_weights(folder), config, source)
    return Imported(config, weights, settings, False)


def _weights(folder: Path) -> dict[str, Tensor]:
    whole = folder / WEIGHTS
    stem = WEIGHTS.removesuffix(".safetensors")
    files = [whole] if whole.exists() else sorted(folder.glob(f"{stem}*.safetensors"))  # parts of one file, or a variant
    if not files:
        raise FormatError(
            f"{folder}: no {WEIGHTS}; only safetensors are read; write the weights with diffusers' save_pretrained(…, "
            "safe_serialization=True)"
        )

    tensors = {}
    for file in files:
        for name, value in tensor_files.load(file).items():
            for old, new in OLD_ATTENTION.items():
                name = name.replace(f".{old}.", f".{new}.")
            tensors[f"model.{name}"] = value
    return tensors


def _scheduled(source: Source, options: ImportOptions) -> tuple[Settings, str]:
    """Return settings of the run, and a SPEC of timestep as a function of λ, from `options.noise_input` or the scheduler's config.

    Raises UsageError if the config is needed and missing, FormatError if no SPEC describes the scheduler.
    """
    if options.noise_input:
        return formats.range_settings(options.noise_input, source, options), options.noise_input
    path = source.path
    places = [path / "scheduler" / SCHEDULER, path / SCHEDULER, path.parent / "scheduler" / SCHEDULER]
    file = next(filter(Path.is_file, places), None)
    if file is None:
        raise UsageError(
            f"{path}: no {SCHEDULER} in it or scheduler/; add --prediction and --noise-input (t:linear, t:squaredcos, …)"
        )
    config = read_json(file)
    prediction, curve = read_config(file)
    count = convert(config.get("num_train_timesteps", 1000), int, f"{file}: num_train_timesteps")
    if (prediction == "u") != isinstance(curve, Shifted):
        raise FormatError(
            f"{file}: its prediction {prediction} does not fit its noise levels; import with --prediction and --noise-input"
        )
    if isinstance(curve, Shifted):
        shift = curve.shift
        schedule = f"fm-ot:shift={shift:.12g}" if shift else "fm-ot"
        code = f"flow:factor={count}"
        flow = {"prediction": "u-path", "weighting": f"u-mse@{schedule}", "schedule": schedule}
        return {**formats.range_settings(code, source, options), **flow}, code
    beta_schedule = str(config.get("beta_schedule"))
    ends = "" if beta_schedule == "squaredcos_cap_v2" else f",start={config.get('beta_start')},end={config.get('beta_end')}"
    with reading(f"{file}: its timesteps ({beta_schedule}) have no level code", "; give a code with --noise-input"):
        timestep = parse_level_code(f"{BETAS[beta_schedule]}:count={count}{ends}")
        apart = float((timestep(curve.level.flip(0)) - curve.time.flip(0) * float(count) + 0.5).abs().max())
        if not apart <= NEAR:
            raise ValueError(f"timesteps differ by up to {apart:g} from elbo's formula, and may be rescaled or learned")
    code = timestep.spec
    low, high = curve.support
    return {**formats.timestep_settings(code, source, options, prediction), "logsnr_min": low, "logsnr_max": high}, code
