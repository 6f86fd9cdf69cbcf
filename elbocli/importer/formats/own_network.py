"""Import of users' networks: a plug-in's class with a state dict, or a program of torch.export (.pt2)."""

import re
from pathlib import Path
from typing import Any

from elbocli.errors import FormatError, UsageError
from elbocli.files.plugins import defined, run_plugin, trust
from elbocli.importer.formats import NAMED, Imported, ImportOptions, Source, fitted, range_settings, source_format, state_dict
from elbocli.nn.networks import NETWORKS, NetworkConfig, config_of
from elbocli.nn.networks.own_network import SIZES, ModuleConfig, ProgramConfig, open_program, read_arguments

FILE = "network.pt2"
TAKES = ("levels", "size", "channels", "classes", "null_class")


@source_format(
    "module",
    recognises=lambda source: False,  # chosen by --network
    takes=(*NAMED, *TAKES, "network"),
)
def module(source: Source, options: ImportOptions) -> Imported:
    """Run the file that --network names, and import weights for its class."""
    said = re.fullmatch(r"(.+\.py):(\w+):?(.*)", options.network)
    if not said:
        raise UsageError(f"--network {options.network!r}: expected FILE.py:CLASS, or FILE.py:CLASS:KEY=VALUE,…")
    file = Path(said[1])
    run_plugin(file)
    if not options.size or not options.channels:
        raise UsageError("--network: add --size and --channels of the network's training images")
    config = _config(file.name, said[2], said[3], options)
    tensors, averaged, _ = state_dict(source, options)
    settings = range_settings(str(getattr(config, "code", "logsnr")), source, options)
    if isinstance(config, ModuleConfig):
        tensors = {f"network.{key}": value for key, value in tensors.items()}
    elif config.num_classes:
        settings["label_dropout"] = 0.1
    weights = fitted(tensors, config, source)
    return Imported(config, weights, settings, averaged)


def _config(file: str, name: str, arguments: str, options: ImportOptions) -> NetworkConfig:
    # name: class in the plug-in `file`. arguments: text KEY=VALUE,… for the class.
    sizes = dict(zip(SIZES, (options.size, options.channels, options.classes or 0)))
    declared = next((each for each in NETWORKS.values() if each.make is defined(file, name)), None)
    told: Any = {"code": options.levels} if options.levels else {}
    none = () if options.null_class is None else (options.null_class,)
    if declared is None:
        return ModuleConfig(**sizes, name=f"{file}:{name}", arguments=arguments, null_class=none, **told)  # type: ignore[arg-type]
    if none:
        raise UsageError(f"--null-class: {name} gets class -1 for 'no class', like elbo's own networks; leave this option out")
    return config_of({"family": declared.name, **sizes, **read_arguments(arguments), **told}, f"--network {name}")


@source_format("program", recognises=lambda source: source.path.suffix == ".pt2", takes=TAKES)
def program(source: Source, options: ImportOptions) -> Imported:
    """Import a program, and copy it into the run."""
    trust(source.path)
    exported, takes = open_program(source.path)
    if not options.levels:
        raise UsageError(
            f"{source.path}: doesn't say how its network gets the noise level; add --levels logsnr, t:linear, sigma or the like"
        )
    side = takes.images.shape[2]
    size = options.size or (side if isinstance(side, int) else 0)
    if not size:
        raise UsageError(f"{source.path}: takes images of any size; add --size PIXELS")
    classes, null = takes.classes if options.classes is None else options.classes, options.null_class
    if (takes.labels is None and (classes or null is not None)) or 0 < takes.classes < classes:
        raise FormatError(f"{source.path}: its network has {takes.classes or 'no'} classes; leave out --classes and --null-class")
    if takes.labels is not None and not classes and null is None and not takes.classes:
        raise UsageError(f"{source.path}: takes labels; add --classes, or --null-class to use no classes")
    config = ProgramConfig(
        image_size=size,
        image_channels=options.channels or takes.images.shape[1],
        num_classes=classes,
        file=FILE,
        sha256=source.sha256,
        variance=takes.variance,
        code=options.levels,
        null_class=() if null is None else (null,),
    )
    settings = range_settings(options.levels, source, options)
    # A program's weights may share memory, which safetensors refuses.
    weights = {f"program.{name}": value.detach().clone() for name, value in exported.module().state_dict().items()}
    return Imported(config, weights, settings, False, files={FILE: source.path})
