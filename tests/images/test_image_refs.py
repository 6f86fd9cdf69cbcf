"""Places: what the kernel is told, and what is read of files that change."""

import os

import pytest

from elbocli.errors import DataError
from elbocli.images.image_refs import Span, read_bytes, will_need


@pytest.fixture
def advised(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, low, size, advice: calls.append((low, size, advice)))
    return calls


def test_a_stretch_of_an_archive_is_asked_for_whole_whatever_the_order(advised, tmp_path):
    path = tmp_path / "a.tar"
    path.touch()
    spans = [Span(str(path), 1000 * k, 900) for k in (7, 3, 9, 4, 5, 8, 6)]
    will_need(spans)
    assert advised == [(3000, 6900, os.POSIX_FADV_WILLNEED)]


def test_a_few_files_far_apart_are_not_worth_what_lies_between(advised, tmp_path):
    path = tmp_path / "a.tar"
    path.touch()
    will_need([Span(str(path), 0, 1000), Span(str(path), 1 << 40, 1000)])
    assert advised == []


def test_each_archive_has_its_own_stretch_and_whole_files_and_lost_archives_none(advised, tmp_path):
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).touch()
    spans = [Span(str(tmp_path / name), 512, 10) for name in ("a.tar", "b.tar", "gone.tar")]
    will_need([*spans, Span(str(tmp_path / "whole.jpg"))])
    assert [(low, size) for low, size, _ in advised] == [(512, 10), (512, 10)]


def test_a_span_is_just_its_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    assert Span(str(path), 10, 5).read() == bytes(range(10, 15))
    assert Span(str(path)).read() == bytes(range(100))
    with pytest.raises(DataError, match="cut short: 10 of 50"):
        read_bytes(path, 90, 50)
