"""Records as JSON: what is written is read back, and what isn't one is refused with its key."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from elbocli.errors import FormatError
from elbocli.files.schema import REST, Record


@dataclass(frozen=True)
class Inner(Record):
    """With a float."""

    level: float


@dataclass(frozen=True, kw_only=True)
class Outer(Record):
    """With all that fields may be."""

    count: int
    known: str | None
    said: str | None = None
    parts: list[Inner]
    by_name: dict[str, Inner]
    others: dict[str, Any] = field(default_factory=dict, metadata=REST)
    last: float | list[float] | None


WHOLE = Outer(
    count=2, known=None, parts=[Inner(0.1)], by_name={"a": Inner(1e300)}, others={"x": [1], "y": None}, last=[1.0, 2.5]
)


def test_what_is_written_is_read_back_in_the_order_of_the_fields() -> None:
    written = json.dumps(WHOLE.json())
    assert Outer.from_json(json.loads(written)) == WHOLE
    assert [*json.loads(written)] == ["count", "known", "parts", "by_name", "x", "y", "last"]
    assert [*Outer(count=1, known="", said="s", parts=[], by_name={}, last=None).json()][:3] == [
        "count",
        "known",
        "said",
    ]


def test_what_may_be_nothing_may_be_missing() -> None:
    content = WHOLE.json()
    del content["known"], content["last"]
    found = Outer.from_json(content)
    assert (found.known, found.said, found.last) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 2.0}, "count is '2.0'; expected a whole number"),
        ({"count": True}, "count is 'True'; expected a whole number"),
        ({"known": 3}, "known is '3'"),
        ({"parts": {}}, "parts is '{}'; expected a list"),
        ({"parts": [{"level": "high"}]}, "parts.level is 'high'; expected a finite number"),
        ({"parts": [{}]}, "parts.level is missing"),
        ({"parts": [3]}, "parts is '3', not an object"),
        ({"by_name": {"a": {"level": 10**400}}}, "by_name.a.level is '1000"),
        ({"last": [1, "b"]}, "last is"),
    ],
)
def test_what_is_no_such_record_is_refused_with_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        Outer.from_json({**WHOLE.json(), **change})
    with pytest.raises(FormatError, match="it is '3', not an object"):
        Outer.from_json(3)
