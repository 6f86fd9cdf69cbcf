"""Every format of elbo's own: a record that is written is read back; a mutated one is read or refused."""

import json
import random
from typing import Any

import pytest
from formats import PACKAGE, content_of, declared, mutated, renewed
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.errors import DataError, FormatError
from elbocli.files.records import Record, StoredFormat, parse_json
from elbocli.files.yaml_text import parse_yaml, yaml_text

FORMATS = [pytest.param(each, id=each.record.__name__) for each in declared()]


@pytest.mark.parametrize("each", FORMATS)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_a_record_is_read_back_from_json_and_yaml(each: StoredFormat, rng: random.Random) -> None:
    record = each.record.of(content_of(rng, each))
    text = json.dumps(record.json(), allow_nan=False)
    again = each.record.of(parse_json(text, "it"))
    assert again == record and json.dumps(again.json()) == text
    assert each.record.of(parse_yaml(yaml_text(record.json()), "it")) == record


@pytest.mark.parametrize("each", FORMATS)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_mutated_record_is_read_or_refused(each: StoredFormat, rng: random.Random) -> None:
    content = mutated(rng, content_of(rng, each))
    try:
        each.record.of(content, "the file")
    except (DataError, FormatError) as error:
        assert str(error).startswith("the file")


@pytest.mark.parametrize("each", FORMATS)
def test_a_later_version_is_not_taken_for_damage(each: StoredFormat) -> None:
    if each.version:
        with pytest.raises(DataError):
            each.record.of({**content_of(random.Random(0), each), "version": each.version + 1})


class Inner(Record, frozen=True):
    """A record in another."""

    level: float


class Outer(Record, frozen=True, kw_only=True):
    """With all that fields may be."""

    REST = "others"
    count: int
    known: str | None
    said: str | None = None
    parts: list[Inner]
    by_name: dict[str, Inner]
    others: dict[str, Any] = {}
    last: float | list[float] | None


def test_keys_without_a_field_are_kept_and_nullable_keys_may_be_missing() -> None:
    content = {"count": 2, "parts": [{"level": 1}], "by_name": {"x": {"level": 2.5}}, "b": {"c": 1}}
    record = Outer.of(content)
    assert record.others == {"b": {"c": 1}}
    assert record.json() == {**content, "known": None, "last": None}
    assert list(Outer(count=1, known="", said="s", parts=[], by_name={}, last=None).json())[:3] == [
        "count",
        "known",
        "said",
    ]


def test_the_page_lists_all_formats() -> None:
    page = PACKAGE.parent / "docs" / "formats.md"
    assert renewed(page.read_text("utf-8")) == page.read_text("utf-8"), "python tests/formats.py docs/formats.md"
