"""Network families, declared by the modules of this folder and by plug-ins.

A network is a torch module (z, logsnr, labels) → out:
z: noised images times c_in of the prediction, [B, C, H, W], with H = W = image_size and C = image_channels;
logsnr: λ of each image, float [B];
labels: class of each image, int64 [B], −1 for "no class"; None if no image has a class;
out: the run's prediction, [B, C, H, W], not a view of another tensor.
The output for an image must not depend on other images of the batch.
Floating-point buffers in the state dict are averaged like weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any, Protocol, Self, TypeVar

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
Module = TypeVar("Module", bound=nn.Module)
NetworkClass = TypeVar("NetworkClass", bound="type[Network]")
Depth = Annotated[int, Meta(ge=1, le=1000)]


@dataclass(frozen=True)
class NetworkConfig:
    """Base of all network configs.

    image_size: side of an image in pixels, or of a latent.
    num_classes: number of classes; 0 is unconditional.
    dropout: fraction of values set to zero in training; a network may ignore the field.
    quiet_classes: whether a zero row in the class embedding means "no class".
    code (in some subclasses): function of λ that tells the network the noise level, such as `sigma`.
    Raises UsageError: when fields contradict each other.

    Subclasses may add fields of type int, float, str, bool, or tuples of these types.
    """

    quiet_classes = True

    image_size: Size
    image_channels: Size
    num_classes: Count
    dropout: Annotated[float, Meta(ge=0, lt=1)] = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        code = getattr(self, "code", None)
        if code is not None:
            with reading(f"network: code {code!r}", kind=UsageError):
                object.__setattr__(self, "code", parse_level_code(code).spec)

    def for_size(self, image_size: int) -> Self:
        """Return the config for images of another size."""
        return replace(self, image_size=image_size)

    def for_classes(self, num_classes: int) -> Self:
        """Return the config for another number of classes. Override if "no class" isn't the last row of the class embedding."""
        return replace(self, num_classes=num_classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (H, W, C)."""
        return self.image_size, self.image_size, self.image_channels

    @property
    def side(self) -> int:
        """Side of images in pixels, after padding."""
        return self.image_size

    def padded(self, z: Tensor) -> Tensor:
        """Pad images [B, C, H, W] with zeros at the right and bottom, to [B, C, side, side]."""
        more = self.side - self.image_size
        return pad(z, (0, more, 0, more)) if more else z

    def cut(self, out: Tensor) -> Tensor:
        """Remove the padding: [B, C, side, side] → [B, C, image_size, image_size], channels last."""
        # Not a view, because FSDP attaches hooks to the output.
        return out[..., : self.image_size, : self.image_size].clone(memory_format=torch.channels_last)

    def example(self, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return zeros as inputs for `count` images, laid out as in training: z, logsnr, labels (None without classes)."""
        z = torch.zeros(count, *self.shape).permute(0, 3, 1, 2)
        labels = torch.zeros(count, dtype=torch.long) if self.num_classes else None
        return z, torch.zeros(count), labels


class Training(Protocol):
    """Settings of a network's training that its use needs."""

    @property
    def prediction(self) -> str: ...
    @property
    def logsnr_min(self) -> float: ...
    @property
    def logsnr_max(self) -> float: ...


class Network(nn.Module):
    """Base of all networks.

    config: subclasses annotate it with the class of their own config.
    recompute: whether `run_unit` uses activation checkpointing, to save memory.
    train_settings: of the run that the network was opened from; None: not from a run.
    """

    config: NetworkConfig
    recompute = False
    train_settings: Training | None = None

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config

    def units(self) -> list[nn.Module]:
        """Return the submodules that FSDP shards separately; []: FSDP shards the whole network.

        `forward` must call each submodule once, by `run_unit`, in the order of the list.
        """
        return []

    def constrain(self, weights: Mapping[str, Tensor], left_out: Tensor) -> None:
        """Project the weights onto the network's constraints, in place, after an update.

        weights: tensors by name; complete, or this rank's shards along the first dimension.
        left_out: scalar bool tensor; true: the weights must not change.
        """

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction. Subclasses override `forward`, or `outputs` for a learned variance."""
        out = self.outputs(z, logsnr, labels)
        if not getattr(self.config, "variance", False):
            return out
        return out[:, : self.config.image_channels].clone()  # not a view, because FSDP attaches hooks to the output

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction, followed by any learned variance v: [B, C or 2C, H, W].

        v: position of a step's log variance between its lower bound (−1) and its upper bound (1).
        Source: Nichol & Dhariwal 2021, eq. 15.
        """
        return self(z, logsnr, labels)

    def run_unit(self, unit: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Call one of `units`, with activation checkpointing if `recompute` is set."""
        again = self.recompute and torch.is_grad_enabled()
        return checkpoint(unit, *inputs, use_reentrant=False) if again else unit(*inputs)


@dataclass(frozen=True, repr=False)
class Family(Declaration[[NetworkConfig], Network]):
    """Declared network family: a class of networks. config: class of the network's config."""

    config: type[NetworkConfig] = field(kw_only=True)


NETWORKS = Registry("network family", Family)


def network(name: str, *, config: type[NetworkConfig], source: str) -> Callable[[NetworkClass], NetworkClass]:
    """Return a decorator that declares a Network class.

    name: value of `family` in files. config: class of the network's config. source: paper or code, for docs.
    Raises UsageError: when the name is taken.
    """
    return NETWORKS.declare(name, source=source, config=config)


def family_of(config: NetworkConfig) -> Family:
    """Return the network family of a config."""
    return next(family for family in NETWORKS.values() if family.config is type(config))


def build(config: NetworkConfig) -> Network:
    """Build a new network. Raises UsageError if torch can't build the network."""
    with reading("network", kind=UsageError, on=(RuntimeError, OverflowError)):
        return family_of(config)(config)


def build_empty(config: NetworkConfig) -> Network:
    """Build a network on the meta device, without memory. Raises UsageError as `build`."""
    with torch.device("meta"):
        return build(config)


def loaded(network: Network, weights: Mapping[str, Tensor]) -> Network:
    """Replace a network's meta tensors by `weights`, and return the network. Raises RuntimeError for other names or shapes."""
    network.load_state_dict(weights, assign=True)
    # Tensors outside the state dict are computed when the network is built, off the meta device.
    held = [*network.buffers(), *(value for module in network.modules() for value in vars(module).values())]
    if any(isinstance(value, Tensor) and value.is_meta for value in held):
        network = build(network.config)
        network.load_state_dict(weights, assign=True)
    return network


def config_of(section: Mapping[str, Any], where: object) -> NetworkConfig:
    """Return the config in a file's section `network`.

    where: source of the section, for messages.
    Raises FormatError: for unknown or missing keys, and for values of another type.
    Raises UsageError: for values that contradict each other.
    """
    values = dict(section)
    family = values.pop("family", "unet")
    with reading(where):
        config = NETWORKS.find(str(family)).config
    for key in values.keys() - _stored(config):
        raise FormatError(f"{where}: network {family} has no setting {key}; {nearest(key, _stored(config))}")
    try:
        made: NetworkConfig = msgspec.convert(values, config)
    except msgspec.ValidationError as error:
        raise FormatError(f"{where}: network {family}: {one_line(error)}") from error
    return made


def _stored(config: type[NetworkConfig]) -> list[str]:
    """Return the names of the fields, as files have them."""
    return [each.name for each in sorted(fields(config), key=lambda each: bool(each.kw_only))]


def section_of(config: NetworkConfig) -> dict[str, Any]:
    """Return a config as a section `network`; `config_of` is the inverse."""
    return {"family": family_of(config).name} | {name: plain(getattr(config, name)) for name in _stored(type(config))}


def count_parameters(module: nn.Module) -> int:
    """Return the number of scalar parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def place(network: Module, device: torch.device) -> Module:
    """Move a network to a device, channels last."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
