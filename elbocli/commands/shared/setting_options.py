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


def setting_option(settings: type[Settings], name: str, group: str | None = None) -> Callable[[Function], Function]:
    """Return a decorator that adds the option of a setting.

    An option that isn't given has the setting's default; it is None or () if the settings are layered, and None
    if a text says what an empty default means.
    group: heading in the help; None: the setting's.
    """
    setting = settings.declared()[name]
    word = f"--{name.replace('_', '-')}"
    how: dict[str, bool] = {}
    if setting.kind is bool:
        how = {} if settings.layered else {"is_flag": True}
        word = f"{word}/--no-{word[2:]}" if settings.layered else word
    elif get_origin(setting.kind) is tuple and get_args(setting.kind)[-1] is ...:
        how = {"multiple": True}
    if setting.shown or setting.zero:
        how["show_default"] = False
    return option(
        *(setting.flags or word).split(),
        name,
        type=option_type(setting),
        default=None if settings.layered or ((setting.shown or "multiple" in how) and not setting.default) else setting.default,
        metavar=setting.metavar or (f"N|{setting.zero}" if setting.zero else None),
        help=f"{setting.help}  [default: {setting.shown}]" if setting.shown else setting.help,
        more=setting.more,
        group=setting.group if group is None else group,
        **how,
    )


def setting_options(settings: type[Settings]) -> Callable[[Function], Function]:
    """Return a decorator that adds an option for each setting that has one."""

    def add(function: Function) -> Function:
        for name, setting in reversed(settings.declared().items()):
            if setting.flags != "":
                function = setting_option(settings, name)(function)
        return function

    return add
