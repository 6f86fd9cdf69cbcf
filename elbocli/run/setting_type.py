"""The declaration of a setting, from which its option, its checks, its help and its page follow."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from elbocli.errors import UsageError

LARGEST = 1e6
LARGEST_COUNT = 10**12
LARGEST_DURATION_S = 1000 * 86400
LARGEST_SEED = 2**63 - 1
Shift = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)] | Literal["auto"]
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AUTO = "auto"


def convert_text(value: Any, hint: Any) -> Any:
    """Return a value of that type, made of text or of what YAML has: .5, 1e3 for 1000, auto.

    Raises msgspec.ValidationError.
    """
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                value = kind(value)
                break
    return msgspec.convert(value, hint, strict=False)


@dataclass(frozen=True)
class Setting:
    """Declaration of a setting, besides its name, kind and default.

    group: its heading. help: a line or two; more: what its page adds. shown: its default as the help says it, None as it is,
    "" where presets say it. low, high: bounds; above: low itself is too little. choices: all that it may be. names: the
    module and the name in it that hold what it may begin with; words: what else. metavar: what stands for its value.
    flags: its option, where that is not its name. free: it may change when a run goes on. stored: config.yaml says it;
    others go into the settings that it refines. in_presets: a preset may say it; None is as stored.
    """

    group: str
    help: str
    more: str = ""
    shown: str | None = None
    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False
    choices: tuple[str, ...] = ()
    names: str = ""
    words: tuple[str, ...] = ()
    metavar: str = ""
    flags: str = ""
    free: bool = False
    stored: bool = True
    in_presets: bool | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise UsageError for a value out of bounds, or none of the choices."""
        wanted = ""
        if self.choices and value not in self.choices:
            wanted = f"be one of {', '.join(self.choices)}"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if self.above and not value > self.low:
                wanted = f"be above {self.low:g}"
            elif not value >= self.low:
                wanted = f"be at least {self.low:g}" if self.low else "not be negative"
            elif not value <= self.high:
                wanted = f"be at most {self.high:g}"
        if wanted:
            raise UsageError(f"{name.replace('_', '-')} is {value!r}; it must {wanted}")


def setting(default: Any, group: str, help: str, **said: Any) -> Any:
    """A field that is a setting. said: as Setting takes it."""
    return field(default=default, metadata={"setting": Setting(group, help, **said)})


def count(default: int, group: str, help: str, low: int = 1, high: int = LARGEST_COUNT, **said: Any) -> Any:
    """A field that is a whole number of something."""
    return setting(default, group, help, low=low, high=high, **said)
