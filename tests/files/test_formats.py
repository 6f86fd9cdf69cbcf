"""Every format of elbo's own: what is written is read back, and what is mutated is read or refused; nothing else touches it."""

import ast
import importlib
import json
import random
from pathlib import Path

import pytest
from formats import PACKAGE, content_of, declared, mutated, outcome, renewed
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.errors import FormatError
from elbocli.files import strict_json, strict_yaml
from elbocli.files.schema import Declared

MODULES = sorted(PACKAGE.rglob("*.py"))
FORMATS = [pytest.param(each, id=each.schema.__name__) for each in declared()]
FOREIGN = {
    "files/recognise.py": "a word on a file, of which nothing depends",
    "files/scheduler_config.py": "diffusers",
    "nn/autoencoder.py": "diffusers",
    "nn/networks/diffusers_unet.py": "diffusers",
    "nn/networks/own_module.py": "arguments that a user types",
    "images/decode_apart.py": "its own child process",
    "images/labels.py": "EDM's dataset.json",
    "images/parquet.py": "Hugging Face's datasets",
    "importer/formats/diffusers.py": "diffusers",
    "train/command.py": "--config, options by their names",
    "merge/parts.py": "counts, typed at once",
    "files/checkpoint.py": "config.yaml, for checked_config",
    "info/describe.py": "config.yaml, for checked_config",
    "files/losslog.py": "its two kinds of lines are told apart first",
    "files/statistics.py": "about, in the next line",
    "files/snapshots.py": "whether a meta.json is a snapshot's",
    "report/results.py": "kinds of results are told apart first",
}
"""Modules that take JSON or YAML without handing it to a schema at once, and why."""
NAMES = ("parse", "load", "read", "read_object")
PARSERS = {f"{module}.{name}" for module in ("strict_json", "strict_yaml") for name in NAMES}
ATTRIBUTES = {"files/dataset_file.py", "files/dataset_writer.py"}


@pytest.mark.parametrize("each", FORMATS)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_what_is_written_is_read_back(each: Declared, rng: random.Random) -> None:
    found = each.schema.of(content_of(rng, each), "it")
    text = json.dumps(found.json(), allow_nan=False)
    again = each.schema.of(strict_json.load(text, "it"), "it")
    assert again == found and json.dumps(again.json()) == text
    assert each.schema.of(strict_yaml.load(strict_yaml.dump(found.json()), "it"), "it") == found


@pytest.mark.parametrize("each", FORMATS)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_what_is_mutated_is_read_or_refused(each: Declared, rng: random.Random) -> None:
    assert outcome(each, mutated(rng, content_of(rng, each))[1]) in ("read", "refused")


@pytest.mark.parametrize("each", FORMATS)
@pytest.mark.parametrize("content", [None, 3, "text", [], [[]], {}])
def test_what_is_no_object_of_a_format_is_refused(each: Declared, content: object) -> None:
    if content != {}:
        with pytest.raises(FormatError, match=r"it: it is .*(not an object|expected an object)"):
            each.schema.of(content, "it")
    elif each.schema.FORMAT:
        with pytest.raises(FormatError, match="format is None"):
            each.schema.of(content, "it")


@pytest.mark.parametrize("each", FORMATS)
def test_a_format_names_the_functions_that_read_it(each: Declared) -> None:
    for name in filter(None, each.reader.split(", ")):
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))


def parses(source: str) -> list[int]:
    """Lines that parse JSON or YAML and don't hand it to a schema at once."""
    tree = ast.parse(source)
    handed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "of"
        for inner in node.args
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in PARSERS]
    return [call.lineno for call in calls if id(call) not in handed]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_but_a_schema_takes_a_file_apart(path: Path) -> None:
    name, source = path.relative_to(PACKAGE).as_posix(), path.read_text()
    found = parses(source)
    assert bool(found) == (name in FOREIGN), found
    attributes = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == "attrs"
    ]
    assert bool(attributes) == (name in ATTRIBUTES)


def test_a_parser_past_a_schema_is_noticed() -> None:
    assert parses("found = strict_json.read(path)") == [1] and parses("x = Y.of(strict_yaml.read(path), path)") == []


def test_the_page_lists_all_formats() -> None:
    page = PACKAGE.parent / "docs" / "formats.md"
    assert renewed(page.read_text("utf-8")) == page.read_text("utf-8"), "python tests/formats.py docs/formats.md"
