import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.errors import FormatError
from elbocli.files import reading, strict_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2e3", -2e3),
        ("+1.5e-3", 1.5e-3),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e+2", 100.0),
    ],
)
def test_numbers_with_an_exponent_are_floats(text, value):
    found = strict_yaml.load(f"lr: {text}", "x")["lr"]
    assert isinstance(found, float)
    assert found == value


@given(st.floats(allow_nan=False))
def test_every_float_reads_back_from_its_shortest_text(value):
    found = strict_yaml.load(f"lr: {value!r}".replace("inf", ".inf"), "x")["lr"]
    assert isinstance(found, float)
    assert found == value
    assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize("word", ["e5", "1e", "1e5x", "v1.2.3", "e", "1-4", ".", "-", "+", "1e-4 b"])
def test_words_that_only_resemble_numbers_stay_text(word):
    assert strict_yaml.load(f"name: {word}" if word != "-" else "name: '-'", "x")["name"] == word


NUMBER = re.compile(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?$")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85"), max_size=8).filter(
    lambda text: not NUMBER.match(text)
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, TREES, max_size=4))
def test_what_is_dumped_loads_as_the_same(value):
    assert strict_yaml.load(strict_yaml.dump(value), "x") == value


@pytest.mark.parametrize(
    "text",
    ["1e5", "1E5", "-2e3", "1e-4", ".5e3", "12", "1.5", "1_000", "true", "null", "~", "", "2024-01-01", "0x10", ".inf"],
)
def test_text_that_looks_like_something_else_stays_text(text):
    """A class or a folder may be called 1e5."""
    assert strict_yaml.load(strict_yaml.dump({text: [text]}), "x") == {text: [text]}


def test_a_date_is_text():
    assert strict_yaml.load("seed: 2024-01-01", "x") == {"seed": "2024-01-01"}


def test_a_unicode_next_line_survives():
    assert strict_yaml.load(strict_yaml.dump({"class": "a\x85b"}), "x") == {"class": "a\x85b"}


def test_keys_keep_their_order():
    assert list(strict_yaml.load(strict_yaml.dump({"b": 1, "a": 2}), "x")) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: {b: 1, b: 2}", "'b' is given twice"),
        ("a: [{b: 1, b: 2}]", "'b' is given twice"),
        ("1: a", "not text"),
        ("[a]: 1", "not usable"),
        ("a: [1", "not usable"),
        ("a: 1\n\tb: 2", "not usable"),
        ("a: *b", "not usable"),
        ("- a", "expected 'key: value'"),
        ("a", "expected 'key: value'"),
        ("", "found nothing"),
        ("a: \x00", "not usable"),
        ("a: 1\n---\nb: 2", "not usable"),
        ("a: !!binary aGk=", "not usable"),
        ("a: !!set {b: null}", "not usable"),
    ],
)
def test_bad_yaml_is_refused_by_name(text, what):
    with pytest.raises(FormatError, match=f"^settings: .*{what}"):
        strict_yaml.load(text, "settings")


def test_the_line_of_a_duplicate_is_told():
    with pytest.raises(FormatError, match="line 3"):
        strict_yaml.load("a: 1\nb: 2\na: 3", "x")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [{}]",
        "a: !!python/object/new:os.mkdir {{args: [{}]}}",
        "!!python/object/apply:os.mkdir [{}]",
        "a: !!python/name:os.mkdir",
        "a: !!python/module:os",
        "a: !!python/object:elbocli.errors.ElboError {{}}",
    ],
)
def test_python_objects_are_refused_and_nothing_runs(text, tmp_path):
    with pytest.raises(FormatError):
        strict_yaml.load(text.format(tmp_path / "proof"), "x")
    assert not (tmp_path / "proof").exists()


def test_deep_nesting_is_refused_without_a_crash():
    with pytest.raises(FormatError):
        strict_yaml.load("a: " + "[" * 100_000, "x")


def test_files_that_cannot_be_settings_are_refused(tmp_path):
    path = tmp_path / "settings.yaml"
    with pytest.raises(FormatError, match="No such file"):
        strict_yaml.read(path)
    with pytest.raises(FormatError, match="Is a directory"):
        strict_yaml.read(tmp_path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(FormatError, match="not a text file"):
        strict_yaml.read(path)
    with open(path, "wb") as file:
        file.truncate(reading.LARGEST_TEXT + 1)
    with pytest.raises(FormatError, match="too large"):
        strict_yaml.read(path)


def test_a_file_is_read_as_utf8_in_any_locale(tmp_path, python):
    path = tmp_path / "settings.yaml"
    path.write_text("name: λ\n", "utf-8")
    code = "import os, sys\nfrom pathlib import Path\nfrom elbocli.files import strict_yaml as yamls\nprint(ascii(yamls.read(Path(sys.argv[1]))))"
    assert python(code, path).strip() == ascii({"name": "λ"})
