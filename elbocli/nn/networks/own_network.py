"""Use a torch.nn.Module of a plug-in as a network."""

import inspect
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

import torch
from msgspec import Meta
from torch import Tensor, nn

from elbocli.core.schedule import parse_level_code
from elbocli.errors import UsageError
from elbocli.files.plugins import defined
from elbocli.files.reading import reading
from elbocli.files.yaml_text import parse_yaml
from elbocli.nn.networks import Network, NetworkConfig, network
from elbocli.nn.networks.unet import named_labels

SIZES = ("image_size", "image_channels", "num_classes")  # passed to constructors that have arguments of these names
KEY = re.compile(r"(^|,)\s*(\w+)=")


def read_arguments(text: str) -> dict[str, Any]:
    """Parse a constructor's arguments, such as `width=64,levels=[1,2],mode=plain`. Raises FormatError."""
    return parse_yaml("{" + KEY.sub(r"\1 \2: ", text) + "}", f"arguments {text[:60]!r}")


@dataclass(frozen=True, kw_only=True)
class ModuleConfig(NetworkConfig):
    """Config of a network class from a plug-in."""

    code: str = "logsnr"  # level code: the number that tells the network its noise level
    # label that means 'no class' to the network; empty if there is none
    null_class: Annotated[tuple[int, ...], Meta(max_length=1)] = ()
    variance: bool = False  # whether the output has C further channels, for a learned variance
    name: str  # FILE.py:CLASS, a torch.nn.Module in a plug-in
    arguments: str = ""  # KEY=VALUE,… for the constructor of the class

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
                f"{file}: no torch.nn.Module {word} found; add `plugin` {file}; if {file} only imports {word}, also add "
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
            raise UsageError(f"{config.name}: its forward takes no labels; train it `unconditional`, or set num_classes to 0")
        self.code = parse_level_code(config.code)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.config.null_class:
            labels = named_labels(labels, self.config.null_class[0], logsnr)
        return self.network(z, self.code(logsnr), *([labels] if self.labelled else []))
