"""Every format of elbo's own is read back or refused; libraries that could run code have one owner; outputs replace their own kind."""

import contextlib
import hashlib
import json
import random
import re
import shutil

import pytest
from formats import PACKAGE, content_of, declared, mutated, renewed
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.outputs import check_outputs
from elbocli.files.reading import add_digests, reading
from elbocli.files.recognise import FOLDER
from elbocli.files.records import parse_json
from elbocli.files.yaml_text import parse_yaml, yaml_text

# Records

FORMATS = pytest.mark.parametrize("each", [pytest.param(each, id=each.record.__name__) for each in declared()])


@FORMATS
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_a_record_is_read_back_from_json_and_yaml_and_a_mutated_one_read_or_refused(each, rng):
    content = content_of(rng, each)
    record = each.record.of(content)
    assert {key for key, value in content.items() if value is not None} <= {*record.json()}
    text = json.dumps(record.json(), allow_nan=False)
    again = each.record.of(parse_json(text, "it"))
    assert again == record and json.dumps(again.json()) == text
    assert each.record.of(parse_yaml(yaml_text(record.json()), "it")) == record
    try:
        each.record.of(mutated(rng, content_of(rng, each)), "the file")
    except (DataError, FormatError) as error:
        assert str(error).startswith("the file")


@given(st.lists(st.text()), st.text())
def test_any_text_reads_back_from_yaml(texts, key):
    """Also line breaks of Unicode."""
    content = {"texts": [*texts, "a\x85b", "\u2028"], "key " + key: 1}
    text = yaml_text(content)
    assert parse_yaml(text.encode().decode(), "it") == content


@FORMATS
def test_a_later_version_is_not_taken_for_damage(each):
    if each.version:
        with pytest.raises(DataError):
            each.record.of({**content_of(random.Random(0), each), "version": each.version + 1})


@pytest.mark.parametrize("page", ["docs/datasets.md", "man/elbo-formats.5"])
def test_a_page_lists_all_formats(page):
    path = PACKAGE.parent / page
    assert renewed(path) == path.read_text("utf-8"), "make docs"


def test_digests_add_up_in_any_order_and_grouping():
    digests = [hashlib.sha256(bytes([k])).hexdigest() for k in range(9)]
    assert add_digests([add_digests(digests[5:]), *digests[:5]]) == add_digests(digests)
    assert add_digests([]) == "0" * 64 and add_digests(["f" * 64, "0" * 63 + "1"]) == "0" * 64


@pytest.mark.parametrize("error", [EOFError, MemoryError])
def test_an_error_without_words_is_told_in_words(error):
    with pytest.raises(FormatError) as told, reading("the file"):
        raise error
    assert error.__name__ not in str(told.value) and len(str(told.value)) > len("the file: ")


# Nothing in a file is run

OWNERS = {
    r"(import|from) yaml\b": {"files/yaml_text.py"},
    r"(import|from) (pickle|marshal|shelve|dill|joblib|cloudpickle)\b": {"files/pickles.py", "files/tensor_files.py"},
    r"pickle\.(loads?|Unpickler)\b|allow_pickle=True|weights_only=False|extractall": set(),
    r"pickle\._Unpickler|find_class": {"files/pickles.py"},
    r"(import|from) tarfile\b": {"files/recognise.py", "data/kinds/trees.py"},
    r"(import|from) h5py\b": {"files/dataset.py"},
    r"(import|from) safetensors\b": {"files/checkpoint.py", "files/tensor_files.py"},
    r"(torch|export)\.load\(": {"files/tensor_files.py"},
    r"(import|from) scipy\.io\b": {"data/labels.py"},
    r"(import|from) pyarrow\b": {"data/kinds/parquet.py"},
    r"(import|from) subprocess\b": set(),
    r"sys\.executable|os\.(system|popen|exec|spawn)|(?<![.\w])(eval|exec|__import__)\(": set(),
    r"exec_module": {"files/plugins.py"},
    r"Image\.open": {"data/decode.py", "training/targets.py", "report/page.py"},
}
"""Patterns of calls, or of imports, and the only modules that may have them."""
MODULES = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("pattern", OWNERS)
def test_every_library_that_reads_strangers_files_is_called_by_its_own_module(pattern):
    assert {name for name, text in MODULES.items() if re.search(pattern, text)} == OWNERS[pattern]


# Files that commands may write


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def shelf(trained, digits, digits_folder, tmp_path):
    """A folder with a run, a dataset, images, and files of nobody's."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copy(digits, tmp_path / "data.h5")
    shutil.copytree(digits_folder / "1", tmp_path / "photos")
    for end in ("yaml", "svg", "md", "safetensors", "npz", "html", "tsv", "json"):
        (tmp_path / f"mine.{end}").write_text("mine")
    return tmp_path


REFUSED = """
sample run -n 2 --steps 1 -o run
sample run -n 2 --steps 1 -o run/previews/step-00000040.png
sample run -n 2 --steps 1 -o photos
sample run -n 2 --steps 1 -o data.h5
ema run --std .1 -o run/checkpoints/step-00000040/model.safetensors
ema run --std .1 -o mine.safetensors
report run -o run/config.yaml
report run -o mine.html
adapt run/losslog.jsonl -o run/losslog.jsonl
adapt run -o mine.yaml
grid run -o mine.yaml
bound run -n 4 --log run/losslog.jsonl
bound run -n 4 --curve data.h5
eval data.h5 --ref data.h5 --extractor elbo-tiny --save-stats mine.npz
weights plot edm -o mine.svg
prep data.h5 data.h5
prep photos run/../data.h5/../data.h5 data.h5
"""
REPEATED = """
sample run -n 2 --steps 1 -o out1
sample run -n 2 --steps 1 -o out1.h5
sample run -n 2 --steps 1 -o out1.npz
sample run -n 2 --steps 1 -o run/out1.png
report run -o run/out2.html
adapt run -o run/out3.yaml --plot out3.pdf
bound run -n 4 --log out4.jsonl --curve out4.tsv
eval data.h5 --ref data.h5 --extractor elbo-tiny --metrics fid --save-stats out6.npz --save-features out6.safetensors
prep photos out9.h5 --size 8
"""


def test_overwriting_replaces_nothing_but_results_of_the_command(elbo, shelf):
    before = tree(shelf)
    for line in REFUSED.strip().splitlines():
        result = elbo(*line.split(), "--overwrite", cwd=shelf)
        assert result.returncode in (1, 2) and result.stderr.count(b"error:") == 1, (line, result)
        assert tree(shelf) == before, line


@pytest.mark.long
def test_overwriting_replaces_results_of_the_command(elbo, shelf):
    for line in REPEATED.strip().splitlines():
        assert elbo(*line.split(), cwd=shelf).returncode == 0, line
        before = tree(shelf)
        again = elbo(*line.split(), cwd=shelf)
        assert again.returncode == 2 and b"--overwrite" in again.stderr and tree(shelf) == before, line
        done = elbo(*line.split(), "--overwrite", cwd=shelf)
        assert done.returncode == 0 and tree(shelf).keys() == before.keys(), (line, done.stderr)


OUTPUTS = """
empty       page   kept       refused
empty       page   overwrite  allowed
empty       folder overwrite  refused
dangling    page   kept       refused
dangling    page   overwrite  allowed
new         page   kept       allowed
drawn       page   overwrite  refused
gone/file   page   overwrite  refused
gone/folder folder overwrite  allowed
drawn       folder overwrite  allowed
mixed       folder overwrite  refused
"""


@pytest.mark.parametrize("line", OUTPUTS.strip().splitlines())
def test_an_output_is_new_or_of_its_own_kind(line, tmp_path):
    name, kind, overwrite, expected = line.split()
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for file in ("drawn/000000.png", "mixed/000000.png", "mixed/notes.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    kinds = [FOLDER if kind == "folder" else "a page"]
    with contextlib.nullcontext() if expected == "allowed" else pytest.raises((UsageError, DataError)):
        check_outputs([(tmp_path / name, kinds)], [], overwrite == "overwrite")
