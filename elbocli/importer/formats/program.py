"""Programs of torch.export (.pt2): anybody's network, with its inputs read from the program itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.files.plugins import trust
from elbocli.importer.formats import Imported, ImportOptions, Source, source_format
from elbocli.importer.levels import range_settings
from elbocli.nn.networks.program import ProgramConfig, Signature, open_program

FILE = "network.pt2"
TAKES = ("levels", "size", "channels", "classes", "null_class")


@source_format(
    "program",
    about="A torch.export program (.pt2) of any network (z, level, labels) or (z, level); sampled and measured, not trained.",
    source="torch.export; elbocli.export_network writes one",
    licence="that of the network",
    recognises=lambda source: source.path.suffix == ".pt2",
    takes=TAKES,
)
def program(source: Source, options: ImportOptions) -> Imported:
    """Keep the program in the run, and its weights in the checkpoint."""
    trust(source.path)
    exported, takes = open_program(source.path)
    if not options.levels:
        raise UsageError(
            f"{source.path}: doesn't say what its network is told of the noise; add --levels logsnr, t:linear, sigma, flow, …"
        )
    code = parse_level_code(options.levels)
    size = _agreed(source, "size", options.size, takes.size)
    channels = _agreed(source, "channels", options.channels, takes.channels)
    config = ProgramConfig(
        image_size=size,
        image_channels=channels,
        num_classes=_classes(source, options, takes),
        file=FILE,
        sha256=source.sha256,
        variance=takes.variance,
        code=code.spec,
        null_class=() if takes.labels is None or options.null_class is None else (options.null_class,),
    )
    notes = []
    if not takes.levels.is_floating_point():
        notes.append("it takes whole timesteps: what lies between two is rounded")
    known, more = range_settings(code.spec, options)
    settings: dict[str, Any] = {**known, "label_dropout": 0.1 if config.num_classes and config.null_class else 0.0}
    weights: dict[str, Tensor] = {}
    places = set[int]()
    for name, value in exported.module().state_dict().items():
        place = value.untyped_storage().data_ptr()
        shared = place in places  # a file of weights holds no tensor under two names
        places.add(place)
        weights[f"program.{name}"] = value.detach().clone() if shared else value.detach()
    data = {"image_size": size, "num_classes": config.num_classes, "channels": channels}
    notes += [*more, f"a program is code: commands on this run need --plugin RUN/{FILE}"]
    return Imported(config, weights, settings, data, False, "not known", notes, {FILE: source.path})


def _agreed(source: Source, name: str, said: int | None, found: int) -> int:
    """The number that the program has, or else the user says."""
    if said not in (None, found) and found:
        raise FormatError(f"{source.path}: its {name} is {found}, and --{name} says {said}; leave it out")
    if not found and not said:
        raise UsageError(f"{source.path}: takes images of any {name}; add --{name}")
    return found or int(said or 0)


def _classes(source: Source, options: ImportOptions, takes: Signature) -> int:
    """Number of classes that it is told."""
    if takes.labels is None:
        if options.classes or options.null_class is not None:
            raise FormatError(f"{source.path}: takes no labels; leave --classes and --null-class out")
        return 0
    if options.classes is None and not takes.classes:
        raise UsageError(f"{source.path}: takes labels, and doesn't say of how many classes; add --classes")
    classes = takes.classes if options.classes is None else options.classes
    if takes.classes and classes > takes.classes:
        raise FormatError(f"{source.path}: knows {takes.classes} classes, and --classes says {classes}")
    if not classes and not takes.classes and options.null_class is None:
        raise UsageError(f"{source.path}: takes labels; with --classes 0, add --null-class, the label of no class")
    return classes
