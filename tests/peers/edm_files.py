"""Files as EDM writes them: its modules pickled by torch_utils.persistence, with their source beside their state.

The classes and the module of that name exist only while a file is written.
"""

import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peers.edm_unet import Tensors
from torch import nn

SOURCE = "raise SystemExit('the source in a pickle was run')\n"
"""What stands where EDM's pickles have the source of networks.py."""
CONTAINERS = {"enc", "dec"}


def _made_again(meta: Any) -> Any:
    raise AssertionError(f"a pickle was run, of {meta['class_name']}")


@contextmanager
def persistence() -> Iterator[None]:
    """Let pickle find torch_utils.persistence, for as long as it writes."""
    package, module = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")
    _made_again.__module__, _made_again.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _made_again  # type: ignore[attr-defined]
    package.persistence = module  # type: ignore[attr-defined]
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


class Persistent:
    """An object that pickles as EDM's do: a call with its class's name and source, and its attributes."""

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(self).__name__, "state": self.__dict__}
        return _made_again, (meta,), None


def made_class(name: str, base: type = nn.Module) -> Any:
    """A class of that name whose objects pickle so."""
    return type(name, (Persistent, base), {})


def kind_of(name: str, tensors: Tensors) -> str:
    """The name of EDM's class for a part that has these tensors."""
    last = name.rpartition(".")[2]
    if last.startswith(("norm", "out_norm")):
        return "GroupNorm"
    if any("." in inner for inner in tensors):
        return "UNetBlock"
    return "Linear" if last.startswith(("map_", "affine")) else "Conv2d"


def module_of(tensors: Tensors, kind: str, name: str = "", **attributes: Any) -> Any:
    """A module with these tensors as its parameters and buffers, named as EDM's classes are."""
    module = nn.ModuleDict() if kind == "ModuleDict" else made_class(kind)()
    vars(module).update(attributes)
    parts: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        # Names of blocks have no dots.
        head, _, rest = key.partition(".")
        if not rest:
            (module.register_buffer if head == "resample_filter" else module.register_parameter)(
                head, tensor if head == "resample_filter" else nn.Parameter(tensor, requires_grad=False)
            )
        else:
            parts.setdefault(head, {})[rest] = tensor
    if kind == "Conv2d" and "weight" not in tensors:
        module.weight = module.bias = None
    for head, inner in parts.items():
        below = "ModuleDict" if head in CONTAINERS and kind != "ModuleDict" else kind_of(head, inner)
        module.add_module(head, module_of(inner, below, head, **({"dropout": 0.1} if below == "UNetBlock" else {})))
    if kind == "DhariwalUNet":
        module.add_module("map_noise", made_class("PositionalEmbedding")())
    return module


def preconditioned(tensors: Tensors, kind: str = "EDMPrecond", network: str = "DhariwalUNet", **attributes: Any) -> Any:
    """EDM's network with its preconditioning around it."""
    outer = made_class(kind)()
    vars(outer).update({"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf"), "use_fp16": True, **attributes})
    outer.add_module("model", module_of(tensors, network))
    return outer


def loss(**attributes: float) -> Any:
    """EDM's loss function as its snapshots hold it."""
    found = made_class("EDMLoss", object)()
    vars(found).update(attributes)
    return found


def write_pickle(path: Path, content: Mapping[str, Any]) -> Path:
    """Write network-snapshot-*.pkl."""
    with persistence(), path.open("wb") as file:
        pickle.dump(dict(content), file)
    return path


def write_state(path: Path, content: Mapping[str, Any]) -> Path:
    """Write training-state-*.pt."""
    buffer = BytesIO()
    with persistence():
        torch.save(dict(content), buffer)
    path.write_bytes(buffer.getvalue())
    return path
