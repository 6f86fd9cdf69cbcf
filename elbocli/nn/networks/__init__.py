"""Networks: each module here declares one, and so may anyone's own file.

A network is a module (z, logsnr, labels) → out:
z [B, C, H, W], the noised images as their prediction scales them, H = W = image_size and C = image_channels;
logsnr [B], their λ, float; labels [B] int64, the class of each, −1 for none, or None where no image has one;
out [B, C, H, W], what its run's prediction says, and no view of another tensor, which sharding would warn of.
An image's output may depend on no other image of the batch.
Buffers of floats in its state_dict are kept in checkpoints beside the weights, and averaged with them.
It is built from a config, a frozen dataclass that says all about it: NetworkConfig with fields of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Self

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from elbocli.core.registry import Declaration, Registry, nearest
from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.files.reading import one_line, reading
from elbocli.files.records import Count, plain

Size = Annotated[int, Meta(ge=1, le=2**20)]
Depth = Annotated[int, Meta(ge=1, le=1000)]


def explained(help: str, **how: Any) -> Any:
    """A field of a config, with what the help says about it. how: as dataclasses.field takes it."""
    return field(metadata={"help": help}, **how)


@dataclass(frozen=True)
class NetworkConfig:
    """Config that every network has. num_classes 0 is unconditional; image_size is the side in pixels, or of latents.

    A network's own config adds fields of int, float, str, bool or tuples of one of them, so that files can hold it.
    dropout may be left unused. A `code` is a level code, kept as its whole spec. trainable: whether a run may train it.
    quiet_classes: whether a class whose row is zero is none to the network. Bounds of single fields stand in their types,
    and config_of checks them; a config raises UsageError for fields that don't go together.
    """

    trainable = True
    quiet_classes = True

    image_size: Size
    image_channels: Size
    num_classes: Count
    dropout: Annotated[float, Meta(ge=0, lt=1)] = explained(
        "Share of values set to zero while training.", default=0.0, kw_only=True
    )

    def __post_init__(self) -> None:
        code = getattr(self, "code", None)
        if code is not None:
            with reading(f"network: code {code!r}", kind=UsageError):
                object.__setattr__(self, "code", parse_level_code(code).spec)

    def for_size(self, image_size: int) -> Self:
        """The same network for images of another size."""
        return replace(self, image_size=image_size)

    def for_classes(self, num_classes: int) -> Self:
        """The same network told so many classes. In weights that have rows for classes, they are the first rows."""
        return replace(self, num_classes=num_classes)

    @property
    def side(self) -> int:
        """Side in pixels at which the network works: the image's, or more."""
        return self.image_size

    def padded(self, z: Tensor) -> Tensor:
        """Return images with zeros at the right and below, [B, C, side, side]; those that need none as they are."""
        more = self.side - self.image_size
        return pad(z, (0, more, 0, more)) if more else z

    def example(self, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Zeros as inputs of the network for so many images: z, logsnr, and labels if it is told classes."""
        z = torch.zeros(count, self.image_channels, self.image_size, self.image_size)
        labels = torch.zeros(count, dtype=torch.long) if self.num_classes else None
        return z, torch.zeros(count), labels

    def beside(self, folder: Path) -> Self:
        """The same network, files that belong to it in this folder: a config was read from a file there."""
        return self


class Network(nn.Module):
    """Base of every network. One that leaves `units` as it is trains as well, but is sharded and recomputed whole.

    config: what it was built from. recompute: whether to keep only what goes into each unit for the backward pass, and
    run the unit again there; training sets it.
    """

    recompute = False

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def units(self) -> list[nn.Module]:
        """Submodules that are each called once, by `through`, in this order: sharded and recomputed one by one."""
        return []

    def constrain(self, weights: Mapping[str, Tensor], left_out: Tensor) -> None:
        """Change the stored weights in place after an update, where a network holds them to something; most don't.

        weights: by name, each whole or this process's part of it along the first dimension, without gradients. left_out:
        whether the update was left out, one value on their device: then nothing may change. Averages have seen the
        weights as the optimizer left them.
        """

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """The prediction alone, of `outputs`. A network has one of the two: this one where no config has variances."""
        out = self.outputs(z, logsnr, labels)
        if not self.config.variance:
            return out
        return out[:, : self.config.image_channels].clone()  # no view: FSDP hooks itself to what comes out

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """Everything that the last layer gives: the prediction, and behind it learned variances where a config has them.

        [B, 2C, H, W] with variances v, each in its channel: the logarithm of the step's variance lies (v+1)/2 of the way
        from the smallest to the largest (Nichol & Dhariwal 2021, eq. 15). Else what `forward` gives.
        """
        return self(z, logsnr, labels)

    def through(self, unit: nn.Module, *inputs: Any) -> Tensor:
        """A unit's output, in the way that `recompute` asks for."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(unit, *inputs, use_reentrant=False)
        return unit(*inputs)


NETWORKS = Registry("network family")
"""Their traits are the class of their configs."""


def network(name: str, *, config: type[NetworkConfig], source: str) -> Callable[[Any], Any]:
    """Declare a Network, a class made of its config. name: its `family` in files. Raises UsageError when it is taken."""
    return NETWORKS.declare(name, source=source, traits=config)


def declaration_of(config: NetworkConfig) -> Declaration:
    """The network that a config is of."""
    return next(declared for declared in NETWORKS.values() if declared.traits is type(config))


def build(config: NetworkConfig) -> Network:
    """A new network; under `torch.device("meta")` without memory. Raises UsageError where torch can't make it."""
    with reading("network", kind=UsageError, on=(RuntimeError, OverflowError)):
        return declaration_of(config).make(config)


def loaded(network: Network, weights: Mapping[str, Tensor]) -> Network:
    """A network that was built without memory, with these tensors. Raises RuntimeError where they don't fit.

    One that computes tensors for itself, which no file holds, is built again, with memory.
    """
    network.load_state_dict(weights, assign=True)
    held = [*network.buffers(), *(value for module in network.modules() for value in vars(module).values())]
    if any(isinstance(value, Tensor) and value.is_meta for value in held):
        network = build(network.config)
        network.load_state_dict(weights, assign=True)
    return network


def config_of(section: Mapping[str, Any], where: object) -> NetworkConfig:
    """The config that a section `network` describes; without `family` it is a U-Net's.

    where: for messages; a Path is that of the file which the section is from.

    Raises FormatError for keys that the family doesn't have or lacks, and for values of another type, UsageError when they don't fit each other.
    """
    values = dict(section)
    family = values.pop("family", "unet")
    with reading(where):
        config = NETWORKS.find(str(family)).traits
    for key in values.keys() - set(_stored(config)):
        raise FormatError(f"{where}: network {key} is unknown to {family}; {nearest(key, _stored(config))}")
    try:
        made: NetworkConfig = msgspec.convert(values, config)
    except msgspec.ValidationError as error:
        raise FormatError(f"{where}: network {family}: {one_line(error)}") from error
    return made.beside(where.parent) if isinstance(where, Path) else made


def _stored(config: type[NetworkConfig]) -> list[str]:
    """The fields that files hold by name, in the order of the constructor."""
    ordered = sorted(fields(config), key=lambda each: bool(each.kw_only))
    return [each.name for each in ordered if each.metadata.get("stored", True)]


def section_of(config: NetworkConfig) -> dict[str, Any]:
    """A section `network` that config_of reads back, in the order of the config's constructor."""
    values = {name: plain(getattr(config, name)) for name in _stored(type(config))}
    return {"family": declaration_of(config).name, **values}


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())


def place(network: Network, device: torch.device) -> Network:
    """Move to a device, in the memory layout of its images (channels last)."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
