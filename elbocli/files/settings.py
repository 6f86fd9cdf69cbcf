"""Settings, each declared once: type, bounds, help and group. Options, config files and arguments are checked by the declaration.

    @dataclass(frozen=True, kw_only=True)
    class DrawSettings(Settings):
        n: int = setting(64, "Number of images.", flags="-n --num-samples", ge=1)
        sampler: str = setting("dpmpp-2m", "See 'elbo list samplers'.", names="elbocli.sampling.samplers.SAMPLERS")

`DrawSettings.of({"n": "3"})` converts and checks values; `setting_options(DrawSettings)` adds options to a command.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import field, fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from elbocli.core.registry import nearest
from elbocli.errors import UsageError
from elbocli.runtime import AUTO

LARGEST = 1e6
LARGEST_COUNT = 10**12
LARGEST_SEED = 2**63 - 1
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Level = Annotated[float, Meta(ge=-50, le=50)]  # a logsnr


class Setting(NamedTuple):
    """Declaration of a setting.

    help, more: text for the help; more text, only for the man page. group: heading in the help; "": that of the setting before.
    ge, gt, le: bounds of the value. parse: module and name of a function that reads the value from text.
    names: module and name of a registry of allowed names. words: further allowed values. file: whether text may be a path to read.
    zero: word for 0, such as 'none'. flags: the option's names; "": no option; None: as the setting is called.
    metavar: placeholder of the value in the help. shown: default in the help; "": the default, unless it is empty.
    replaces, suffixes: of an output file: existing files that it may replace, such as "a figure"; its allowed suffixes.
    paced: whether the default shrinks with --steps when a run is shorter than its preset.
    free: whether a resumed run may change the setting. preset: whether presets may set it.
    stored: whether config.yaml has the setting; False: `resolve` merges the setting into another one.
    hint, kind: type with bounds; type without bounds and `| None`. Both, the default and the group follow from the class.
    """

    help: str
    more: str = ""
    group: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    parse: str = ""
    names: str = ""
    words: tuple[str, ...] = ()
    file: bool = False
    zero: str | None = None
    flags: str | None = None
    metavar: str | None = None
    shown: str = ""
    replaces: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    paced: bool = False
    free: bool = False
    preset: bool = True
    stored: bool = True
    default: object = None
    hint: Any = None
    kind: Any = None

    def convert(self, name: str, value: object) -> Any:
        """Return a value of the setting's type. Raises UsageError for a bad value."""
        try:
            if self.zero and value == self.zero:
                return 0
            return convert_text(resolve_name(self.parse)(value) if self.parse else value, self.hint)
        except ValueError as error:
            raise UsageError(f"{name} is {value!r}: {error}") from error


def setting(default: Any, help: str, **declared: Any) -> Any:
    """Declare a setting, except its type. declared: fields of Setting. An int without bounds is a count."""
    return field(default=default, metadata={"setting": Setting(help, **declared)})


def device_setting(group: str = "") -> Any:
    """Declare the setting that names the device to compute on."""
    shown = "$ELBO_DEVICE, else cuda if there is one"
    return setting(AUTO, "cpu, cuda, cuda:1, …", shown=shown, group=group, metavar="NAME")


class Settings:
    """Base of frozen dataclasses whose fields are declared by `setting`. Other fields are no options.

    layered: whether presets and config files give the values of settings that no option gives.
    """

    layered: ClassVar[bool] = False

    @classmethod
    @cache
    def declared(cls) -> dict[str, Setting]:
        """Return the declarations: name → Setting with default, type and group."""
        found: dict[str, Setting] = {}
        group = ""
        hints = get_type_hints(cls, include_extras=True)
        for item in fields(cls):  # type: ignore[arg-type]  # subclasses are dataclasses
            declared: Setting | None = item.metadata.get("setting")
            if declared is None:
                continue
            hint = hints[item.name]
            kind = hint
            while get_origin(kind) not in (None, Literal, tuple):  # of a union, the first type
                kind = get_args(kind)[0]
            group = declared.group or group
            bounds = {key: bound for key in ("ge", "gt", "le") if (bound := getattr(declared, key)) is not None}
            if kind is int:
                bounds = {"ge": 0, "le": LARGEST_COUNT, **bounds}
            if bounds:
                hint = Annotated[kind, Meta(**bounds)] | None if type(None) in get_args(hint) else Annotated[kind, Meta(**bounds)]
            found[item.name] = declared._replace(group=group, default=item.default, hint=hint, kind=kind)
        return found

    @classmethod
    def convert(cls, values: Mapping[str, object], allowed: Collection[str] = ()) -> dict[str, Any]:
        """Convert settings to their types. Raises UsageError for a name outside `allowed`, by default all, or a bad value."""
        declared = cls.declared()
        allowed = allowed or declared
        for name in values:
            if name not in allowed:
                raise UsageError(f"unknown setting {name!r}; {nearest(name, allowed)}")
        return {name: declared[name].convert(name, value) for name, value in values.items()}

    @classmethod
    def of(cls, values: Mapping[str, object], **others: object) -> Self:
        """Return settings.

        values: setting → value or text; None: the default. others: values of the fields that are no options.
        Raises UsageError for an unknown setting, or a bad value.
        """
        return cls(**cls.convert({name: value for name, value in values.items() if value is not None}), **others)


def convert_text(value: object, hint: Any) -> Any:
    """Convert text or a YAML value to an annotated type, such as "1e3" to an int. Raises ValueError."""
    try:
        return msgspec.convert(value, hint, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        number = None
        with suppress(ValueError):
            number = float(value) if isinstance(value, str) and not value.isdigit() else None
        if number is not None:  # ".5" is no number in JSON, by whose rules msgspec converts
            return convert_text(number, hint)
        reason = str(error).replace("`", "")
        raise ValueError(reason[0].lower() + reason[1:]) from error


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str | Path):
        raise ValueError(f"expected a path, found {value!r}")
    return Path(value)
