"""A network that is a torch.export program (.pt2): anybody's, run as it is; its weights are given, and it isn't trained.

The program lies beside the run's config.yaml. It is code: elbo loads it only where the user has named it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from elbocli.core.schedule import parse_level_code
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.hashing import file_sha256
from elbocli.files.plugins import check_trusted
from elbocli.files.reading import reading
from elbocli.files.tensor_files import read_program, user_inputs
from elbocli.nn.networks import Network, NetworkConfig, explained, network
from elbocli.nn.networks.blocks import as_it_comes


@dataclass(frozen=True)
class ProgramConfig(NetworkConfig):
    """Config of a program. Raises UsageError for a code that is none, FormatError for a file in another folder.

    folder: of the file, as an absolute path or one from here; where the config was read says it, so that a run can be moved.
    """

    trainable = False

    file: str = explained("Name of the .pt2 file in the run's folder.")
    sha256: str = explained("Digest of that file.")
    code: str = explained("Number that it is told instead of logsnr, a level code.", default="logsnr", kw_only=True)
    null_class: tuple[int, ...] = explained(
        "Label that it takes for 'no class', one or none.", default=(), kw_only=True
    )
    variance: bool = explained("Whether it gives twice the channels, the second half for variances.", default=False)
    folder: str = explained("", default="", kw_only=True, stored=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_level_code(self.code)
        if not self.file.endswith(".pt2") or Path(self.file).name != self.file:
            raise FormatError(f"network: file is {self.file!r}, expected the name of a .pt2 file in the run's folder")
        if len(self.null_class) > 1:
            raise FormatError(f"network: null_class is {list(self.null_class)}, expected one label at most")

    def beside(self, folder: Path) -> Self:
        """The same, its file in this folder."""
        return replace(self, folder=str(folder))

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / self.file


class Signature(NamedTuple):
    """Inputs and output of a program.

    channels, size: of its images, size 0 where it takes any. levels, labels: like its inputs, without memory; labels is
    None where it takes none, [B] whole numbers, or [B, classes] where it wants a 1 at the class. most: images at a time.
    """

    channels: int
    size: int
    images: Tensor
    levels: Tensor
    labels: Tensor | None
    variance: bool
    most: int

    @property
    def classes(self) -> int:
        """Number of classes where the labels say it, else 0."""
        return int(self.labels.shape[1]) if self.labels is not None and self.labels.is_floating_point() else 0


def signature_of(program: torch.export.ExportedProgram, where: object) -> Signature:
    """Read what a program takes and gives. Raises FormatError when it is no network (z, level, labels) → out."""
    inputs = user_inputs(program)
    outputs = [node.meta.get("val") for node in program.graph.output_node().args[0]]
    told = f"{', '.join(map(_shape, inputs)) or 'nothing'} → {', '.join(map(_shape, outputs)) or 'nothing'}"
    wanted = "expected z [B, C, H, W], levels [B], labels [B] if it has classes → [B, C, H, W] or twice the channels"
    wrong = FormatError(f"{where}: no network for images: it computes {told}; {wanted}")
    if len(inputs) not in (2, 3) or len(inputs) != len(program.graph_signature.user_inputs) or len(outputs) != 1:
        raise wrong
    images, levels = inputs[:2]
    labels = inputs[2] if len(inputs) > 2 else None
    out = outputs[0]
    if images.dim() != 4 or not images.is_floating_point() or not isinstance(out, Tensor) or out.dim() != 4:
        raise wrong
    shape: tuple[Any, ...] = tuple(images.shape)  # whole numbers, or symbols of torch
    batch, channels, *sides = shape
    if not isinstance(channels, int) or out.shape[1] not in (channels, 2 * channels):
        raise wrong
    if any(one.shape[0] != batch for one in (out, *inputs)) or any(side != 1 for side in levels.shape[1:]):
        raise wrong
    if labels is not None and not (labels.dim() == 2 if labels.is_floating_point() else labels.dim() == 1):
        raise wrong
    fixed = all(isinstance(side, int) for side in sides)
    if fixed and sides[0] != sides[1]:
        raise FormatError(f"{where}: takes images of {sides[0]} x {sides[1]} pixels; elbo's are square")
    limits = program.range_constraints.get(batch.node.expr)
    most = limits.upper if limits is not None else None
    bounded = int(most) if most is not None and getattr(most, "is_Integer", False) else 1 << 30
    variance = out.shape[1] == 2 * channels
    return Signature(channels, sides[0] if fixed else 0, images, levels, labels, variance, bounded)


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    sides = ["B" if k == 0 else str(side) if isinstance(side, int) else "?" for k, side in enumerate(value.shape)]
    return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(sides)}]"


def open_program(path: Path) -> tuple[torch.export.ExportedProgram, Signature]:
    """A program for images and what it takes. Raises FormatError when it is none."""
    program = read_program(path, f"elbocli.export_network(network, {str(path)!r}, z, level, labels)")
    return program, signature_of(program, path)


@network("program", config=ProgramConfig, source="torch.export")
class Program(Network):
    """The network of a ProgramConfig, with the weights that its file holds, also where others are made without memory.

    Raises UsageError where the user has named no such program, DataError when the file is gone or has changed.
    """

    def __init__(self, config: ProgramConfig):
        super().__init__(config)
        with reading(config.path, kind=DataError):
            digest = file_sha256(config.path)
        if digest != config.sha256:
            raise DataError(
                f"{config.path}: has changed since it was imported (sha256 {digest[:12]}…, expected {config.sha256[:12]}…); "
                "put the file back, or import it anew"
            )
        check_trusted(digest, config.path)
        with torch.device("cpu"):
            program, self.takes = open_program(config.path)
            self.program: Any = program.module()
        # Constants are no weights: they must move between devices, and no checkpoint holds them.
        for module in self.program.modules():
            for name, value in [each for each in vars(module).items() if isinstance(each[1], Tensor)]:
                delattr(module, name)
                module.register_buffer(name, value, persistent=False)
        self.code = parse_level_code(config.code)
        self._place = torch.device("cpu")

    def train(self, mode: bool = True) -> Self:
        """Nothing: a program computes as it was exported."""
        self.training = mode
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move as modules do, but keep the layout in memory: a program may count on it."""
        kwargs.pop("memory_format", None)
        return super().to(*args, **kwargs)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, C, H, W], or [B, 2C, H, W] where it tells of variances. Raises UsageError for classes that it can't be told."""
        if len(z) > self.takes.most:
            cut = self.takes.most
            some = [None] * -(-len(z) // cut) if labels is None else labels.split(cut)
            parts: Sequence[Any] = list(zip(z.split(cut), logsnr.split(cut), some, strict=True))
            return torch.cat([self.outputs(*part) for part in parts])
        self._follow(z.device)
        inputs = [z.to(self.takes.images.dtype).contiguous(), self._told(logsnr)]
        if self.takes.labels is not None:
            inputs.append(self._classes(labels, z))
        with as_it_comes(z):
            out = self.program(*inputs)
        out = out[0] if isinstance(out, tuple | list) else out
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """See networks."""
        out = self.outputs(z, logsnr, labels)
        return out[:, : self.config.image_channels].contiguous() if self.takes.variance else out

    def _told(self, logsnr: Tensor) -> Tensor:
        """The number that it wants to be told, [B] or [B, 1, …], rounded where it takes whole ones."""
        levels = self.takes.levels
        number = self.code(logsnr)
        number = number.round() if not levels.is_floating_point() else number
        return number.to(levels.dtype).view(-1, *[1] * (levels.dim() - 1))

    def _classes(self, labels: Tensor | None, z: Tensor) -> Tensor:
        """Labels as it wants them; no class is its own label for that, or no 1 anywhere."""
        wanted, none = self.takes.labels, self.config.null_class
        assert wanted is not None
        if labels is None:
            labels = torch.full((len(z),), -1, device=z.device)
        if none:
            labels = labels.where(labels >= 0, none[0])
        elif not wanted.is_floating_point() and labels.device.type == "cpu" and bool((labels < 0).any()):
            raise UsageError(
                f"{self.config.path}: doesn't know images of no class; give each its class, or import it with the label "
                "that it takes for none"
            )
        if not wanted.is_floating_point():
            return labels.to(wanted.dtype)
        named = F.one_hot(labels.clamp(min=0).long(), int(wanted.shape[1])) * (labels >= 0)[:, None]
        return named.to(wanted.dtype)

    def _follow(self, device: torch.device) -> None:
        """Have tensors that the program makes itself be made where its inputs are."""
        if device == self._place:
            return
        graph = self.program.graph
        for node in graph.nodes:
            node.args = _moved(node.args, device)
            node.kwargs = _moved(node.kwargs, device)
        self.program.recompile()
        self._place = device


def _moved(value: Any, device: torch.device) -> Any:
    """Arguments of an operation with every device in them replaced."""
    if isinstance(value, torch.device):
        return device
    if isinstance(value, tuple | list):
        return type(value)(_moved(each, device) for each in value)
    return {key: _moved(each, device) for key, each in value.items()} if isinstance(value, dict) else value
