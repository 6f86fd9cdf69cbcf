"""Modules of torch that somebody has pickled whole: their class, their attributes and the tensors of their state_dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files.torch_pickle import Foreign

MOST_MODULES = 100_000


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
