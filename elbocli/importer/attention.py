"""`--attention`: facts of attention that shapes don't tell."""

from __future__ import annotations

from dataclasses import dataclass

from elbocli.core.registry import parse_spec
from elbocli.errors import UsageError
from elbocli.nn.networks.blocks import HEAD_WIDTH, heads_of


@dataclass(frozen=True)
class AttentionOrder:
    """Facts of attention that shapes don't tell. heads: 0 is one for `width` channels.

    outside: whether q, k and v come first and heads within them, "new" in guided-diffusion; else each head has its own.
    """

    heads: int = 0
    width: int = HEAD_WIDTH
    outside: bool = False

    @classmethod
    def parse(cls, text: str) -> AttentionOrder:
        """`heads=4`, `width=64`, `width=64,new`. Raises UsageError."""
        spec = parse_spec(f"attention:{text}", ["new"])
        said = {
            key: value
            for key, value in spec.params.items()
            if key in ("heads", "width") and value.isdecimal() and value.isascii()
        }
        if len(said) != 1 or said != spec.params or not all(map(int, said.values())):
            raise UsageError(f"--attention {text}: expected heads=N or width=N, and ',new' after it where it is so")
        return cls(int(said.get("heads", 0)), int(said.get("width", HEAD_WIDTH)), "new" in spec.flags)

    def heads_of(self, channels: int) -> int:
        """Heads of a level of so many channels."""
        return self.heads or heads_of(channels, self.width)
