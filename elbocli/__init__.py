"""elbo: diffusion objectives as weightings over noise levels.

`__init__.pyi` lists the names of the Python API.
"""

from functools import cache

from elbocli.version import __version__ as __version__


@cache
def _homes() -> dict[str, str]:
    """Map each public name to its module."""
    import re
    from pathlib import Path

    stub = Path(__file__).with_name("__init__.pyi").read_text("utf-8")
    return {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", stub, re.M)}


def __getattr__(name: str) -> object:
    if name.startswith("_") or name not in _homes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # names are imported on first use, so that `elbo --help` stays fast

    globals()[name] = getattr(import_module(_homes()[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*_homes(), "__version__"])
