"""Networks of users: any torch.nn.Module of a plug-in, and any program of torch.export (.pt2)."""

import inspect
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from elbocli.core.schedule import parse_level_code
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.atomic import new_file
from elbocli.files.plugins import check_trusted, defined
from elbocli.files.reading import file_sha256, reading
from elbocli.files.tensor_files import read_program, user_inputs
from elbocli.files.yaml_text import parse_yaml
from elbocli.nn.networks import Network, NetworkConfig, explained, network
from elbocli.nn.networks.unet import as_it_comes, named_labels

SIZES = ("image_size", "image_channels", "num_classes")  # passed to constructors that have arguments of these names
KEY = re.compile(r"(^|,)\s*(\w+)=")


@dataclass(frozen=True, kw_only=True)
class OwnConfig(NetworkConfig):
    """Base config of users' networks."""

    code: str = explained("Level code: the number that tells the network its noise level.", default="logsnr")
    null_class: Annotated[tuple[int, ...], Meta(max_length=1)] = explained(
        "Label that means 'no class' to the network; empty if there is none.", default=()
    )
    variance: bool = explained("Whether the output has C further channels, for a learned variance.", default=False)


# Classes of plug-ins.


def read_arguments(text: str) -> dict[str, Any]:
    """Parse a constructor's arguments, such as `width=64,levels=[1,2],mode=plain`. Raises FormatError."""
    return parse_yaml("{" + KEY.sub(r"\1 \2: ", text) + "}", f"arguments {text[:60]!r}")


@dataclass(frozen=True, kw_only=True)
class ModuleConfig(OwnConfig):
    """Config of a network class from a plug-in."""

    name: str = explained("FILE.py:CLASS, a torch.nn.Module in a plug-in.")
    arguments: str = explained("KEY=VALUE,… for the constructor of the class.", default="")

    def for_classes(self, num_classes: int) -> Self:
        """Return the config for another number of classes.

        A null_class equal to the old number of classes becomes the new number.
        Raises UsageError: null_class is another number ≥ 0, and the number of classes changes, but not to 0.
        """
        null = self.null_class
        if null == (self.num_classes,):
            null = (num_classes,)
        elif num_classes not in (0, self.num_classes) and max(null, default=-1) >= 0:
            raise UsageError(
                f"network: {self.name}: label {null[0]} means no class; use data of {self.num_classes} classes, not {num_classes}"
            )
        return replace(self, num_classes=num_classes, null_class=null)


@network("module", config=ModuleConfig, source="a plug-in")
class OwnModule(Network):
    """Network that wraps a class of a plug-in. labelled: whether forward takes labels.

    Raises UsageError: the class is missing, or refuses the arguments.
    """

    labelled = False

    def __init__(self, config: ModuleConfig):
        super().__init__(config)
        file, _, word = config.name.partition(":")
        make = defined(file, word)
        if not (isinstance(make, type) and issubclass(make, nn.Module)):
            raise UsageError(
                f"{file}: no torch.nn.Module {word} found; add --plugin {file}; if {file} only imports {word}, also add "
                f"'class {word}({word}): pass' to {file}"
            )
        known = inspect.signature(make).parameters
        given = {key: getattr(config, key) for key in SIZES if key in known} | read_arguments(config.arguments)
        wanted = torch.empty(0).device
        # Some constructors read values of tensors, which meta tensors don't have.
        with reading(f"{config.name}: can't be made with {given}", kind=UsageError), torch.device("cpu"):
            self.network = make(**given).to(wanted)
        with suppress(TypeError):
            self.labelled = bool(inspect.signature(self.network.forward).bind(None, None, None))
        if config.num_classes and not self.labelled:
            raise UsageError(f"{config.name}: its forward takes no labels; train it --unconditional, or set num_classes to 0")
        self.code = parse_level_code(config.code)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.config.null_class:
            labels = named_labels(labels, self.config.null_class[0], logsnr)
        return self.network(z, self.code(logsnr), *([labels] if self.labelled else []))


# Programs of torch.export.


@dataclass(frozen=True, kw_only=True)
class ProgramConfig(OwnConfig):
    """Config of a program of torch.export. folder: folder of the .pt2 file."""

    trainable = False

    file: str = explained("Name of the .pt2 file in the run's folder.")
    sha256: str = explained("SHA-256 digest of the .pt2 file.")
    folder: str = field(default="", metadata={"stored": False})

    def beside(self, folder: Path) -> Self:
        return replace(self, folder=str(folder))


class Signature(NamedTuple):
    """Inputs of a program, as tensors without values.

    images: [B, C, H, W]; H is symbolic if the program accepts any size. levels: [B] or [B, 1, …].
    labels: integers [B] or one-hot [B, classes]; None: no labels.
    variance: whether the output has learned variances.
    """

    images: Tensor
    levels: Tensor
    labels: Tensor | None
    variance: bool

    @property
    def classes(self) -> int:
        """Number of classes of one-hot labels; else 0."""
        return int(self.labels.shape[1]) if self.labels is not None and self.labels.is_floating_point() else 0


def open_program(path: Path) -> tuple[torch.export.ExportedProgram, Signature]:
    """Read a program and its Signature. Raises FormatError: not a network for square images."""
    program = read_program(path, f"elbocli.export_network(network, {str(path)!r}, z, level, labels)")
    inputs: Any = user_inputs(program)
    out = program.graph.output_node().args[0][0].meta.get("val")
    shape, given = (tuple(each.shape) if isinstance(each, Tensor) else () for each in ((*inputs, None)[0], out))
    if (
        len(inputs) not in (2, 3)
        or len(inputs) != len(program.graph_signature.user_inputs)
        or not inputs[0].is_floating_point()
        or not len(shape) == len(given) == 4
        or given[1] not in (shape[1], 2 * shape[1])
        or len({side for side in shape[2:] if isinstance(side, int)}) > 1
    ):
        raise FormatError(
            f"{path}: not a network for square images: z {shape} → {given}; export a function of z [B, C, H, H], levels [B] "
            "and optional labels [B], with output [B, C or 2C, H, H]"
        )
    return program, Signature(inputs[0], inputs[1], (*inputs, None)[2], given[1] == 2 * shape[1])


@network("program", config=ProgramConfig, source="torch.export")
class Program(Network):
    """Network that wraps a program of torch.export; its weights stay in the .pt2 file.

    Raises UsageError: the user doesn't trust the program. DataError: the file is missing or has changed.
    """

    def __init__(self, config: ProgramConfig):
        super().__init__(config)
        path = Path(config.folder) / config.file
        with reading(path, kind=DataError):
            digest = file_sha256(path)
        if digest != config.sha256:
            raise DataError(f"{path}: has changed since it was imported; restore the file, or import it again")
        check_trusted(digest, path)
        with torch.device("cpu"):  # also within `torch.device("meta")`
            program, self.takes = open_program(path)
            self.program: Any = program.module()
        # Make constants non-persistent buffers: they must move between devices, but don't belong in checkpoints.
        for module in self.program.modules():
            for name, value in [each for each in vars(module).items() if isinstance(each[1], Tensor)]:
                delattr(module, name)
                module.register_buffer(name, value, persistent=False)
        self.code, self._place = parse_level_code(config.code), torch.device("cpu")

    def train(self, mode: bool = True) -> Self:
        self.training = mode  # a program has only the mode that it was exported in
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        kwargs.pop("memory_format", None)  # a program may depend on the memory format
        return super().to(*args, **kwargs)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        takes = self.takes
        self._follow(z.device)
        level = self.code(logsnr)
        level = level if takes.levels.is_floating_point() else level.round()
        inputs = [z.to(takes.images.dtype).contiguous(), level.to(takes.levels.dtype).view(-1, *takes.levels.shape[1:])]
        if takes.labels is not None:
            inputs.append(self._label_input(labels, logsnr).to(takes.labels.dtype))
        with as_it_comes(z):
            out = self.program(*inputs)
        out = out[0] if isinstance(out, tuple | list) else out
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def _label_input(self, labels: Tensor | None, logsnr: Tensor) -> Tensor:
        """Return labels [B] or one-hot, as the program takes them. logsnr: gives the batch size.

        Raises UsageError: no label means 'no class'.
        """
        labels = named_labels(labels, (*self.config.null_class, -1)[0], logsnr)
        if self.takes.classes:
            return F.one_hot(labels.clamp(min=0).long(), self.takes.classes) * (labels >= 0)[:, None]
        if not self.config.null_class and labels.device.type == "cpu" and bool((labels < 0).any()):
            raise UsageError(
                f"{self.config.file}: has no label for 'no class'; give each image a class, or import the program with "
                "--null-class"
            )
        return labels

    def _follow(self, device: torch.device) -> None:
        """Make the program create internal tensors on `device`."""
        if device == self._place:
            return
        for node in self.program.graph.nodes:
            node.args, node.kwargs = (
                map_aggregate(each, lambda value: device if isinstance(value, torch.device) else value)
                for each in (node.args, node.kwargs)
            )
        self.program.recompile()
        self._place = device


# Export of networks as programs, for `elbo import FILE.pt2` and `elbo eval --extractor FILE.pt2`.


def export_network(network: nn.Module, path: Path | str, *inputs: Tensor) -> None:
    """Export a network to FILE.pt2 for batches of any size, and check that elbo can read it. An existing file is replaced.

    network: (z [B, C, H, W], level [B], labels [B]) or (z, level) → [B, C or 2C, H, W]; must be on the CPU; is set to eval mode.
    inputs: example inputs; networks built by elbo need none.
    Raises UsageError if torch can't export the network, FormatError if its input isn't images, DataError if writing fails.

        elbocli.export_network(network, "FILE.pt2", torch.zeros(2, 3, 32, 32), torch.zeros(2), torch.zeros(2).long())
        elbocli.export_network(elbocli.open_run("run", "cpu").network, "FILE.pt2")
    """
    if not inputs and isinstance(network, Network):
        inputs = tuple(each.contiguous() for each in network.config.example(2) if each is not None)
    # Decompose, because a disabled autocast is not a tensor operation.
    open_program(_write_program(network, inputs, path, decomposed=True))


def export_extractor(network: nn.Module, images: Tensor, path: Path | str) -> None:
    """Export an extractor to FILE.pt2 for batches of any size, and check that elbo can read it. An existing file is replaced.

    network: uint8 [B, C, H, W] → features [B, D], or (features, logits [B, K]); it is set to eval mode.
    images: example images, uint8 [N, C, H, W]. Scale (below): your module that converts uint8 to float.
    Raises UsageError if torch can't export the network, DataError if writing fails.

        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        network = nn.Sequential(Scale(), nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        elbocli.export_extractor(network, images, "FILE.pt2")
    """
    read_program(_write_program(network, (images,), path))


def _write_program(network: nn.Module, inputs: tuple[Tensor, ...], out: Path | str, decomposed: bool = False) -> Path:
    path = Path(out)
    if path.suffix != ".pt2":
        raise UsageError(f"{path}: the file name must end in .pt2")
    # Two examples: torch would treat a batch of 1 as constant, and more would make the file larger, since they are saved.
    several = tuple(torch.cat([each[:1], each[-1:]]) for each in inputs)
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    wrong = f"{path}: torch.export can't make a program of this network for batches of any size"
    remedy = "; in its forward, read sizes from the input's shape, and don't branch on values of tensors"
    with reading(wrong, remedy, UsageError), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
        program = torch.export.export(network.eval(), several, dynamic_shapes=tuple({0: batch} for _ in several))
        if decomposed:
            program = program.run_decompositions({})
    with new_file(path) as file:
        torch.export.save(program, file)
    return path
