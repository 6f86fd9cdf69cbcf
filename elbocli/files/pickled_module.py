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


def attributes(found: Any) -> dict[Any, Any]:
    """Return a pickled object's attributes, its __dict__; none where it is no object, or its file doesn't say them."""
    meta = _meta(found)
    state = meta.get("state") if meta else found.state if isinstance(found, Foreign) else None
    return state if isinstance(state, dict) else {}


def module_state(module: Any) -> Mapping[str, Any]:
    """Return a pickled module's attributes. Raises FormatError for what is no module."""
    state = attributes(module)
    kinds = [state.get(kind, {}) for kind in ("_modules", "_parameters", "_buffers")]
    if "_modules" not in state or not all(isinstance(kind, dict) for kind in kinds):
        raise FormatError("it is no pickled network")
    return state


def class_name(found: Any) -> str:
    """Return the name of a pickled object's class: EDMPrecond, Linear; '' where it has none."""
    meta = _meta(found)
    return (
        str(meta.get("class_name", "")) if meta else found.name.rpartition(" ")[2] if isinstance(found, Foreign) else ""
    )


def _meta(found: Any) -> dict[Any, Any]:
    """Return what EDM's torch_utils.persistence says of an object, in the only argument of a call."""
    meta = found.args[0] if isinstance(found, Foreign) and found.args else None
    meta = meta.items if isinstance(meta, Foreign) else meta
    return meta if isinstance(meta, dict) else {}


def _tensors_of(module: Any, prefix: str, left: list[int]) -> Iterator[tuple[str, Tensor]]:
    left[0] -= 1
    if left[0] < 0 or prefix.count(".") > 100:
        raise FormatError("it has a network of too many parts")
    state = module_state(module)
    for kind in ("_parameters", "_buffers"):
        for name, value in state.get(kind, {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    for name, inner in state["_modules"].items():
        if inner is not None:
            yield from _tensors_of(inner, f"{prefix}{name}.", left)
