"""Names that plug-ins have as modules of this process, and what they define."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PREFIX = "elbo_plugin_"


def module_name(file: Path | str) -> str:
    """The module that a plug-in becomes, by its file's name."""
    return PREFIX + Path(file).stem


def defined(file: str, name: str) -> Any:
    """A thing that a plug-in which was run defines itself; None where it defines none, or wasn't run."""
    module = sys.modules.get(module_name(file))
    found = getattr(module, name, None)
    return found if module is not None and getattr(found, "__module__", "") == module.__name__ else None
