"""Any torch.nn.Module of a plug-in as a network: a class whose instances map (z, level, labels), or (z, level), to out.

Nothing but a file that the user names (--plugin) is run; a run names the class in it.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from elbocli.core.schedule import parse_level_code
from elbocli.errors import FormatError, UsageError
from elbocli.files.plugins import defined
from elbocli.files.reading import one_line, parse_yaml
from elbocli.nn.networks import Network, NetworkConfig, explained, network

SIZES = ("image_size", "image_channels", "num_classes")
"""Arguments that a class is given where its constructor has them."""
KEY = re.compile(r"(^|,)\s*(\w+)=")


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments in `width=64,levels=[1,2],mode=plain`: numbers, text, true, false, and lists. Raises FormatError."""
    return parse_yaml("{" + KEY.sub(r"\1 \2: ", text) + "}", f"arguments {text[:60]!r}")


@dataclass(frozen=True)
class ModuleConfig(NetworkConfig):
    """Config of a class of a plug-in. Raises FormatError for a name that is none, UsageError for a code that is none."""

    name: str = explained("FILE.py:CLASS, a torch.nn.Module in a plug-in.")
    arguments: str = explained("KEY=VALUE,… for its constructor.", default="", kw_only=True)
    code: str = explained("Number that it is told instead of logsnr, a level code.", default="logsnr", kw_only=True)
    null_class: tuple[int, ...] = explained("Label that it takes for 'no class', or none.", default=(), kw_only=True)
    variance: bool = explained("Whether it gives twice the channels, the second half for variances.", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_level_code(self.code)
        read_arguments(self.arguments)
        if not re.fullmatch(r"[^/:]+\.py:[A-Za-z_]\w*", self.name):
            raise FormatError(f"network: name is {self.name!r}, expected FILE.py:CLASS, without folders")
        if len(self.null_class) > 1:
            raise FormatError(f"network: null_class is {list(self.null_class)}, expected one label at most")

    def for_classes(self, num_classes: int) -> Self:
        """The same with another number of classes; the label for no class stays the one that follows them.

        Raises UsageError where that label is another one of 0 or more, which could become that of a class.
        """
        null = self.null_class
        if num_classes not in (0, self.num_classes) and null != (self.num_classes,) and max(null, default=-1) >= 0:
            raise UsageError(
                f"network: {self.name} takes label {null[0]} for no class, so that it stays with {self.num_classes} classes"
            )
        return replace(
            self, num_classes=num_classes, null_class=(num_classes,) if null == (self.num_classes,) else null
        )


def class_named(name: str) -> type[nn.Module]:
    """The class FILE.py:CLASS of a plug-in that was run. Raises UsageError where there is none."""
    file, _, word = name.partition(":")
    found = defined(file, word)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UsageError(
            f"{file}: defines no torch.nn.Module {word}; name the file as a plug-in, and write 'class {word}(Other): pass' "
            "in it for a class from elsewhere"
        )
    return found


@network("module", config=ModuleConfig, source="a plug-in")
class OwnModule(Network):
    """The network of a ModuleConfig. Raises UsageError where its class isn't there or can't be made of these arguments."""

    def __init__(self, config: ModuleConfig):
        super().__init__(config)
        make, given = class_named(config.name), read_arguments(config.arguments)
        known = inspect.signature(make).parameters
        sizes = {key: getattr(config, key) for key in SIZES if key in known}
        try:
            self.network = _made(make, {**sizes, **given})
        except Exception as error:  # somebody's own code
            raise UsageError(
                f"{config.name}: can't be made with {', '.join(f'{k}={v}' for k, v in {**sizes, **given}.items()) or 'no arguments'}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        takes = inspect.signature(self.network.forward).parameters.values()
        several = [each for each in takes if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        self.labelled = len(several) > 2 or any(each.kind is each.VAR_POSITIONAL for each in takes)
        if config.num_classes and not self.labelled:
            raise UsageError(f"{config.name}: its forward takes no labels, so that it knows no classes; expected 0")
        self.code = parse_level_code(config.code)

    def outputs(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        """See Network."""
        level, none = self.code(logsnr), self.config.null_class
        if not self.labelled:
            return self.network(z, level)
        if none:
            labels = torch.full((len(z),), -1, device=z.device) if labels is None else labels
            labels = labels.where(labels >= 0, none[0])
        return self.network(z, level, labels)


def _made(make: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    try:
        return make(**arguments)
    except (RuntimeError, NotImplementedError):
        # Some read a tensor's values while they are made, and where memory isn't wanted there are none.
        if not torch.empty(0).is_meta:
            raise
        with torch.device("cpu"):
            return make(**arguments).to("meta")
