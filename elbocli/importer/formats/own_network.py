"""Import of users' networks: a plug-in's class with a state dict."""

import re
from pathlib import Path
from typing import Any

from elbocli.errors import UsageError
from elbocli.files.plugins import defined, run_plugin
from elbocli.importer.formats import NAMED, Imported, ImportOptions, Source, fitted, range_settings, source_format, state_dict
from elbocli.nn.networks import NETWORKS, NetworkConfig, config_of
from elbocli.nn.networks.own_network import SIZES, ModuleConfig, read_arguments


@source_format(
    "module",
    recognises=lambda source: False,  # chosen by --network
    takes=(*NAMED, "noise_input", "size", "channels", "num_classes", "null_class", "network"),
)
def module(source: Source, options: ImportOptions) -> Imported:
    """Run the file that --network names, and import weights for its class."""
    match = re.fullmatch(r"(.+\.py):(\w+):?(.*)", options.network)
    if not match:
        raise UsageError(f"--network {options.network!r}: expected FILE.py:CLASS, or FILE.py:CLASS:KEY=VALUE,…")
    file = Path(match[1])
    run_plugin(file)
    if not options.size or not options.channels:
        raise UsageError("--network: add --size and --channels of the network's training images")
    config = _config(file.name, match[2], match[3], options)
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
    sizes = dict(zip(SIZES, (options.size, options.channels, options.num_classes or 0)))
    declared = next((each for each in NETWORKS.values() if each.make is defined(file, name)), None)
    told: Any = {"code": options.noise_input} if options.noise_input else {}
    none = () if options.null_class is None else (options.null_class,)
    if declared is None:
        return ModuleConfig(**sizes, name=f"{file}:{name}", arguments=arguments, null_class=none, **told)  # type: ignore[arg-type]
    if none:
        raise UsageError(f"--null-class: {name} gets class -1 for 'no class', like elbo's own networks; leave this option out")
    return config_of({"family": declared.name, **sizes, **read_arguments(arguments), **told}, f"--network {name}")
