"""Options of commands, made from the declarations of settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from elbocli.commands.shared.commands import PATH, Function, Named, NameOrFile, Output, Value, option
from elbocli.files.settings import Setting, Settings


def option_type(setting: Setting) -> Any:
    """Return the click type of a setting; None for a switch."""
    if setting.names:
        return Named(setting.names, *setting.words)
    if setting.file:
        return NameOrFile()
    if setting.replaces:
        return Output(*setting.replaces, suffixes=setting.suffixes)
    if get_origin(setting.kind) is tuple and get_args(setting.kind)[-1] is not ...:
        return tuple(_plain_type(part) for part in get_args(setting.kind))
    if setting.parse:
        return str
    if setting.kind in (int, float):
        return Value(setting.hint, "count" if setting.kind is int else "number", zero=setting.zero)
    return _plain_type(setting.kind)


def _plain_type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice([str(word) for word in get_args(kind) if word != 0])  # 0: not given
    if kind is Path:
        return PATH
    if kind is bool:
        return None
    return Value(kind, "number") if float in (kind, *get_args(kind)) else str


def setting_option(name: str, setting: Setting, layered: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that adds the option of a setting. An option that isn't given is None or ().

    layered: whether presets and config files give its value then, which the help doesn't show.
    """
    word = f"--{name.replace('_', '-')}"
    how: dict[str, bool] = {}
    if setting.kind is bool:
        how = {} if layered else {"is_flag": True}
        word = f"{word}/--no-{word[2:]}" if layered else word
    elif get_origin(setting.kind) is tuple and get_args(setting.kind)[-1] is ...:
        how = {"multiple": True}
    plain = layered or setting.kind is bool or setting.default in (None, "", ())
    shown = setting.shown or ("" if plain else str(setting.default))
    return option(
        *(setting.flags or word).split(),
        name,
        type=option_type(setting),
        default=None,
        metavar=setting.metavar or (f"N|{setting.zero}" if setting.zero else None),
        help=f"{setting.help}  [default: {shown}]" if shown else setting.help,
        more=setting.more,
        group=setting.group,
        **how,
    )


def setting_options(settings: type[Settings]) -> Callable[[Function], Function]:
    """Return a decorator that adds an option for each setting that has one."""

    def add(function: Function) -> Function:
        for name, setting in reversed(settings.declared().items()):
            if setting.flags != "":
                function = setting_option(name, setting, settings.layered)(function)
        return function

    return add
