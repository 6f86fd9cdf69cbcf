"""Whether the memory that a run is planned to need is there, before its first step."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from msgspec import structs

from elbocli.errors import UsageError
from elbocli.run.settings import Resolved
from elbocli.runtime.device import free_bytes, held_bytes
from elbocli.runtime.processes import World
from elbocli.train.plan import USABLE, Plan

CLEARLY = 1.25
"""Planned memory, in parts of what is there, from which a run is refused: plans are off by up to 20 %."""
LESS: tuple[dict[str, Any], ...] = (
    {},
    {"preview_every": 0},
    {"activation_checkpointing": True},
    {"activation_checkpointing": True, "preview_every": 0},
)
"""Settings that need less memory, the least change first; each with the largest micro-batch that then fits."""


def check_memory(resolved: Resolved, world: World) -> str:
    """Return a warning when a run may lack memory on this process's device; '' when it is there.

    Raises UsageError, with what to do, when it is clearly too little. On CUDA a micro-batch that is found by trying is
    taken for one image.
    """
    found = world.device.type == "cuda" and not resolved.settings.micro_batch
    asked = _with(resolved, {"micro_batch": 1}) if found else resolved
    room = _room(world)
    needed = sum(Plan(asked, world.size).memory().values())
    if needed <= room:
        return ""
    here = "this process can have" if world.size > 1 or world.device.type == "cpu" else "the device has"
    said = f"training takes about {needed / 1e9:.1f} GB of memory, and {here} {room / 1e9:.1f} GB"
    advice = remedy(resolved, world.size, room)
    if needed <= CLEARLY * room:
        return f"{said}; should it be killed: {advice}"
    raise UsageError(f"{said}; {advice}")


def remedy(resolved: Resolved, processes: int, room: int) -> str:
    """Return options with which a run fits into so many bytes a process, or other advice when none do."""
    for change in LESS:
        most = Plan(_with(resolved, change), processes).most(int(USABLE * room))
        if most:
            options = [
                f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}" for name, value in change.items()
            ]
            return f"add {' '.join([*options, f'--micro-batch {most}'])}, or choose a smaller network with --preset (see 'elbo presets list')"
    return "choose a smaller network with --preset (see 'elbo presets list')"


def _with(resolved: Resolved, change: dict[str, Any]) -> Resolved:
    return replace(resolved, settings=structs.replace(resolved.settings, **change))


def _room(world: World) -> int:
    """Bytes that this process can have in all. On the host, processes of one machine share what is free."""
    if world.device.type == "cuda":
        return free_bytes(world.device)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world.size > 1 else 1
    return free_bytes(world.device) // beside + held_bytes()
