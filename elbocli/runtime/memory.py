"""Memory that a process may still take, on the host or on a card."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROOT = Path("/")


def free_bytes(device: torch.device | None = None) -> int:
    """Return the bytes that this process may still take on a device: what is free there, within the limits of its cgroups.

    On the host, where None is too, caches of files count as free.
    """
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min([_available(), *_left_in_cgroups()])


def held_bytes() -> int:
    """Return the bytes that this process holds on the host already."""
    pages = _text(ROOT / "proc/self/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _available() -> int:
    """Return what the system has left."""
    for line in _text(ROOT / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_in_cgroups() -> Iterator[int]:
    """Yield what each limit leaves, of this process's cgroup and of those above it: version 2, or 1."""
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, files, cache = ROOT / "sys/fs/cgroup", ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            files, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
            top = ROOT / "sys/fs/cgroup/memory"
        else:
            continue
        below = top / path.lstrip("/")
        for folder in (below, *below.parents):
            limit, used = (_text(folder / name).strip() for name in files)
            if limit.isdigit() and used.isdigit():
                stat = dict(pair.split() for pair in _text(folder / "memory.stat").splitlines())
                yield max(0, int(limit) - int(used) + int(stat.get(cache, 0)))
            if folder == top:
                break


def _text(path: Path) -> str:
    """Return a file of the kernel's, '' where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
