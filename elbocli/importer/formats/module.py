"""One's own network, a class in a plug-in that the user names, with weights from safetensors or a state dict."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from elbocli.core.schedule import parse_level_code
from elbocli.errors import UsageError
from elbocli.files.plugins import defined, run_plugin
from elbocli.importer.formats import NAMED, Imported, ImportOptions, Source, fitted, source_format, state_dict
from elbocli.importer.levels import range_settings
from elbocli.nn.networks import NETWORKS, NetworkConfig, config_of
from elbocli.nn.networks.own_module import SIZES, ModuleConfig, class_named, read_arguments


@source_format(
    "module",
    about="Weights (safetensors, or a state dict of torch) of your own class: --network FILE.py:CLASS[:KEY=VALUE,...].",
    source="docs/extending.md",
    licence="yours",
    recognises=lambda source: False,  # --network says it
    takes=(*NAMED, "network", "levels", "size", "channels", "classes", "null_class"),
)
def module(source: Source, options: ImportOptions) -> Imported:
    """Run the file that the user names, make its class, and give it the weights."""
    head, suffix, rest = options.network.partition(".py:")
    name, _, arguments = rest.partition(":")
    if not head or not suffix or not name.isidentifier():
        raise UsageError(f"--network {options.network!r}: expected FILE.py:CLASS, or FILE.py:CLASS:KEY=VALUE,…")
    file = Path(head + ".py")
    run_plugin(file)
    for key, value in (("size", options.size), ("channels", options.channels)):
        if value is None:
            raise UsageError(f"--network {options.network}: add --{key}, which images have that it was trained on")
    config, prefix = _config(file.name, name, arguments, options)
    tensors, averaged = state_dict(source, options)
    weights, notes = fitted({prefix + key: value for key, value in tensors.items()}, config, source.path)
    code = str(getattr(config, "code", "logsnr"))
    known, more = range_settings(code, options)
    drops = config.num_classes and (not isinstance(config, ModuleConfig) or config.null_class)
    settings: dict[str, Any] = {**known, "label_dropout": 0.1 if drops else 0.0}
    data = {"image_size": config.image_size, "num_classes": config.num_classes, "channels": config.image_channels}
    needed = f"every command on this run needs --plugin {file}, or ELBO_PLUGIN={file}"
    return Imported(config, weights, settings, data, averaged, "yours", [*notes, *more, needed])


def _config(file: str, name: str, arguments: str, options: ImportOptions) -> tuple[NetworkConfig, str]:
    """The config of a class, and what comes before the names of its weights."""
    sizes = dict(zip(SIZES, (options.size, options.channels, options.classes or 0), strict=True))
    declared = next((each for each in NETWORKS.values() if each.make is defined(file, name)), None)
    if declared is None:
        class_named(f"{file}:{name}")
        code = parse_level_code(options.levels or "logsnr").spec
        none = () if options.null_class is None else (options.null_class,)
        given: Any = {**sizes, "name": f"{file}:{name}", "arguments": arguments, "code": code, "null_class": none}
        return ModuleConfig(**given), "network."
    told = {} if not options.levels else {"code": parse_level_code(options.levels).spec}
    known = {each.name for each in fields(declared.traits)}
    for key in (*told, *([] if options.null_class is None else ["null_class"])):
        if key not in known or key == "null_class":
            raise UsageError(
                f"--network: {name} has no {key!r} in its config, and is told logsnr and class -1 as elbo's own are"
            )
    return config_of({"family": declared.name, **sizes, **read_arguments(arguments), **told}, f"--network {name}"), ""
