"""Names of plug-ins as modules of this process, what they define, and the programs that the user trusts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from elbocli.errors import UsageError
from elbocli.files.hashing import file_sha256

PREFIX = "elbo_plugin_"
_TRUSTED: set[str] = set()
"""Digests of the programs that the user has named."""


def module_name(file: Path | str) -> str:
    """The module that a plug-in becomes, by its file's name."""
    return PREFIX + Path(file).stem


def defined(file: str, name: str) -> Any:
    """A thing that a plug-in which was run defines itself; None where it defines none, or wasn't run."""
    module = sys.modules.get(module_name(file))
    found = getattr(module, name, None)
    return found if module is not None and getattr(found, "__module__", "") == module.__name__ else None


def trust(path: Path) -> None:
    """Allow a program of torch.export that the user names to be loaded, also from a run that has a copy of it."""
    _TRUSTED.add(file_sha256(path))


def check_trusted(digest: str, path: Path) -> None:
    """Raise UsageError for a program that no user has named: a run may come from a stranger."""
    if digest not in _TRUSTED:
        raise UsageError(f"{path}: is a program, which could do anything; if you trust it, add --plugin {path}")
