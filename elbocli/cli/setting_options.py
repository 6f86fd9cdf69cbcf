"""The options of declared settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from elbocli.cli.grouped_help import option
from elbocli.cli.types import Count, Duration, Named, Number, Shift
from elbocli.run.setting_type import Setting
from elbocli.run.train_settings import KIND, SETTINGS, TrainSettings

F = TypeVar("F", bound=Callable[..., Any])


def _type(setting: Setting, kind: str) -> Any:
    """The click type that refuses what the setting refuses."""
    if setting.choices:
        return click.Choice(setting.choices)
    if setting.names:
        return Named(setting.names, *setting.words)
    if setting.metavar == "DURATION":
        return Duration()
    if kind == "int":
        return Count(int(setting.low), int(setting.high))
    return {"float": Number(setting.low, setting.high, above=setting.above), "float | str": Shift()}.get(kind, str)


def _option(name: str, setting: Setting, kind: str, default: Any) -> Callable[[F], F]:
    """An option that is None where it isn't given."""
    word = name.replace("_", "-")
    flags = setting.flags or (f"--{word}/--no-{word}" if kind == "bool" else f"--{word}")
    shown = setting.shown
    if shown is None and default not in (None, "", False):
        shown = "on" if default is True else str(default)
    return option(
        flags,
        name,
        type=None if kind == "bool" else _type(setting, kind),
        default=None,
        multiple=kind.startswith("tuple"),
        metavar=setting.metavar or "|".join(setting.choices) or None,
        help=setting.help + (f"  [default: {shown}]" if shown else ""),
        more=setting.more,
    )


def setting_options(function: F) -> F:
    """An option per setting of training, by its name; None (or empty) where it isn't given."""
    for field in reversed(fields(TrainSettings)):
        _option(field.name, SETTINGS[field.name], KIND[field.name], field.default)(function)
    return function


def setting_groups() -> dict[str, list[str]]:
    """Heading → settings under it, in the order of declaration."""
    groups: dict[str, list[str]] = {}
    for name, setting in SETTINGS.items():
        groups.setdefault(setting.group, []).append(name)
    return groups
