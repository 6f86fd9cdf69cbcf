"""Room for torch where a process may take only so much memory: without it the C++ library aborts while it is loaded."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

from elbocli.errors import DataError
from elbocli.runtime.descriptors import let_nobody_have

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

LIMITS = {resource.RLIMIT_AS: "-v", resource.RLIMIT_DATA: "-d"}
"""Limits under which torch may not fit, and the options of `ulimit` that lift them."""
LACKING = ("shared object", "bad_alloc")
"""Words of the errors by which an import ends that the loader or a library had no room for."""
SPARE = 128 << 20
"""Bytes that the first tensors and threads take."""


def refuse_too_little() -> None:
    """Have a sentence said where torch would abort, when it is first imported. Costs nothing where nothing is limited."""
    if "torch" not in sys.modules and limits():
        sys.meta_path.insert(0, _BeforeTorch())


def limits() -> dict[str, int]:
    """Limits that there are, in bytes, by the options of `ulimit` that lift them."""
    soft = {option: resource.getrlimit(limit)[0] for limit, option in LIMITS.items()}
    return {option: limit for option, limit in soft.items() if limit != resource.RLIM_INFINITY}


class _BeforeTorch:
    """A finder of modules that finds none. It comes before the others, and once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise DataError where torch is asked for and a copy of this process can't import it."""
        if name == "torch":
            sys.meta_path.remove(self)
            if not _copy_imports_torch():
                limited = " and ".join(f"{limit >> 20} MB (ulimit {option})" for option, limit in limits().items())
                lift = "; ".join(f"ulimit {option} unlimited" for option in limits())
                raise DataError(f"out of memory: limited to {limited}, and torch alone takes more; allow more: {lift}")
        return None


def _copy_imports_torch() -> bool:
    """Whether a copy of this process can import torch within the limits. Nobody hears of its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    let_nobody_have(1, 2)
    lacks = False
    try:
        importlib.import_module("torch")
        importlib.import_module("mmap").mmap(-1, SPARE)
    except (MemoryError, OSError):
        lacks = True
    except Exception as error:  # what else is wrong is said when torch is imported in earnest
        lacks = any(word in str(error) for word in LACKING)
    os._exit(lacks)
