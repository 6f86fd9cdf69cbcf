"""Facts that a report of a bug needs, for `elbo --version -v`. What is missing or broken is said so, and hides nothing else."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata

REQUIREMENT = re.compile(r"([\w.-]+)\s*([^;\s]*)(?:.*extra\s*==\s*['\"]([\w-]+))?")
"""A line of elbo's metadata: a package, the versions of it that will do, and the extra that it is for."""


def facts() -> Iterator[tuple[str, str]]:
    """Yield each name, and what is found under it in one line."""
    asked: dict[str, Callable[[], str]] = {
        "python": lambda: f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform,
        "cores": lambda: f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} may be used",
        "memory": _memory,
        "built with": _build,
        "threads": _threads,
        "devices": _devices,
        "HDF5": _hdf5,
        **_dependencies(),
    }
    for name, ask in asked.items():
        try:
            found = ask()
        except Exception as error:  # a broken installation, which the report may be about, raises anything
            found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if found:
            yield name, found


def _memory() -> str:
    from elbocli.runtime.device import free_bytes

    return f"{free_bytes() >> 20} MB may be taken"


def _build() -> str:
    """Say what torch was built with."""
    import torch

    built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "cuDNN": torch.backends.cudnn.version()}
    return ", ".join(f"{name} {version}" for name, version in built.items() if version) or "neither CUDA nor ROCm"


def _threads() -> str:
    import torch

    chosen = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    return ", ".join([str(torch.get_num_threads()), *chosen])


def _devices() -> str:
    from elbocli.runtime.device import card_bytes, devices_here, meant_by

    here = [
        f"{name} ({about}, {(card_bytes(name) or 0) >> 20} MB)" if about else name
        for name, about in devices_here().items()
    ]
    return f"{', '.join(here)}; auto is {meant_by('auto')}"


def _hdf5() -> str:
    import h5py

    return str(h5py.version.hdf5_version)


def _dependencies() -> dict[str, Callable[[], str]]:
    """Return what tells each package that elbo's own metadata names, once."""
    try:
        lines = metadata.requires("elbocli") or []
    except metadata.PackageNotFoundError:
        return {"packages": lambda: "not known, as elbo is not installed, but runs from its source"}
    found: dict[str, tuple[str, list[str]]] = {}
    for match in filter(None, map(REQUIREMENT.match, lines)):
        name, wanted, extra = match.groups()
        found.setdefault(name, (wanted, []))[1].extend([extra] if extra else [])
    return {name: partial(_package, name, *about) for name, about in found.items()}


def _package(name: str, wanted: str, extras: list[str]) -> str:
    """Say the version of a package; nothing where one is not installed that only extras need."""
    kind = f"of {', '.join(extras)}: {wanted}" if extras else wanted
    try:
        return f"{metadata.version(name)} ({kind})"
    except metadata.PackageNotFoundError:
        return "" if extras else f"not installed ({kind})"
