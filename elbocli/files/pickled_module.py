"""Objects in a pickle that are never made, and the tensors of those that are modules of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from elbocli.errors import FormatError

MOST_MODULES = 100_000


@dataclass(eq=False)
class Foreign:
    """An object that is named in a file, and never made. name: `module name`; of a class, or of what was to be called.

    args: what it was to be called with. state: what it was to be given, mostly its __dict__. items, values: what a dict
    or a list of its class was to hold.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)


def module_tensors(module: Any) -> dict[str, Tensor]:
    """Return the tensors of a pickled nn.Module by the names that its state_dict would have. Raises FormatError.

    module: a Foreign of torch's own pickling, or one wrapped by EDM's torch_utils.persistence.
    """
    return dict(_tensors_of(module, "", [MOST_MODULES]))


def module_state(module: Any) -> Mapping[str, Any]:
    """Return a pickled module's attributes, its __dict__. Raises FormatError for what is no module."""
    state = module.state if isinstance(module, Foreign) else None
    if isinstance(module, Foreign) and module.args and isinstance(module.args[0], Foreign | dict):
        meta = module.args[0]
        state = (meta.items if isinstance(meta, Foreign) else meta).get("state", state)
    if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict):
        raise FormatError("it is no pickled network")
    return state


def class_name(module: Any) -> str:
    """Return the name of a pickled module's class: EDMPrecond, Linear; '' where it has none."""
    if isinstance(module, Foreign) and module.args and isinstance(module.args[0], Foreign | dict):
        meta = module.args[0]
        return str((meta.items if isinstance(meta, Foreign) else meta).get("class_name", ""))
    return module.name.rpartition(" ")[2] if isinstance(module, Foreign) else ""


def _tensors_of(module: Any, prefix: str, left: list[int]) -> Iterator[tuple[str, Tensor]]:
    left[0] -= 1
    if left[0] < 0 or prefix.count(".") > 100:
        raise FormatError("it has a network of too many parts")
    state = module_state(module)
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    for name, inner in state["_modules"].items():
        if inner is not None:
            yield from _tensors_of(inner, f"{prefix}{name}.", left)
