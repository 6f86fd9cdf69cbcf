"""Files as EDM writes them: its modules pickled by torch_utils.persistence, with their source beside their state.

The module of that name exists only while a file is written.
"""

import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SOURCE = "raise SystemExit('the source in a pickle was run')\n"
"""What stands where EDM's pickles have the source of networks.py."""


def _made_again(meta: Any) -> Any:
    raise AssertionError(f"a pickle was run, of {meta['class_name']}")


@contextmanager
def persistence() -> Iterator[None]:
    """Let pickle find torch_utils.persistence, for as long as it writes."""
    package = ModuleType("torch_utils")
    module = ModuleType("torch_utils.persistence")
    _made_again.__module__ = "torch_utils.persistence"
    _made_again.__qualname__ = "_reconstruct_persistent_obj"
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
        return _made_again, (meta,)


def renamed(persistent: Any, name: str) -> None:
    """Pickle an object under the name of another class."""
    persistent.__class__ = type(name, (type(persistent),), {})


def object_of(name: str, **attributes: Any) -> Any:
    """An object, of a class of that name, that is no module; a loss function, say."""
    made = Persistent()
    vars(made).update(attributes)
    renamed(made, name)
    return made


def write_pickle(path: Path, content: Mapping[str, Any]) -> Path:
    """Write network-snapshot-*.pkl."""
    with persistence(), path.open("wb") as file:
        pickle.dump(content, file)
    return path


def write_state(path: Path, content: Mapping[str, Any]) -> Path:
    """Write training-state-*.pt."""
    with persistence():
        torch.save(content, path)
    return path
