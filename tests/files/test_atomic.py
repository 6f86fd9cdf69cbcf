"""Files and folders appear whole or not at all, whatever stops the writer: a kill, a fault, a full disk, a missing right."""

import errno
import json
import os
import resource
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import heard

from elbocli.errors import DataError
from elbocli.files import atomic, checkpoint
from elbocli.files.dataset import DatasetWriter
from elbocli.files.resumable import IMAGES, BlockLayout
from elbocli.files.tensor_files import AVERAGE, AverageFacts, write_tensors

NOBODY = 65534
LIMIT = 1 << 18
TENSORS = {"x": torch.zeros(LIMIT)}
FACTS = AverageFacts.of({"spec": "0.9", "step": 1, "images": 1})


def tree(folder):
    """Content of every file below a folder, by its path."""
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def write_file(folder, content=bytes(4 * LIMIT)):
    with atomic.new_file(folder / "old") as file:
        file.write(content)


def write_folder(folder):
    with atomic.new_folder(folder / "kept") as aside:
        (aside / "part").write_bytes(bytes(4 * LIMIT))


def write_checkpoint(folder):
    checkpoint.save(folder, 1, {"model": TENSORS}, {"state": TENSORS}, {"images": 1, "log_bytes": {}})


def write_average(folder):
    write_tensors(folder / "old", TENSORS, AVERAGE, FACTS)


def write_dataset(folder):
    rows = np.zeros((16, 128, 128, 3), np.uint8)
    with DatasetWriter(folder / "data.h5", BlockLayout(IMAGES, rows.shape[1:]), len(rows), {"of": "zeros"}).held() as writer:
        writer.append(rows, len(rows), {})
        writer.finish({"labels": np.zeros(len(rows), np.int64)}, {})


WRITERS = (write_file, write_folder, write_checkpoint, write_average, write_dataset)


@contextmanager
def full_disk(request):
    yield request.getfixturevalue("small_disk")


@contextmanager
def file_size_limit(request):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield request.getfixturevalue("tmp_path")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def missing_folder(request):
    yield request.getfixturevalue("tmp_path") / "gone"


@contextmanager
def read_only_folder(request):
    """Make a folder read-only inside the block; a process of root acts as an ordinary user there."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        folders = [Path(name), Path(name, "checkpoints")]
        for each in folders:
            each.chmod(0o555)
        try:
            if user == 0:
                os.seteuid(NOBODY)
            yield Path(name)
        finally:
            os.seteuid(user)
            for each in folders:
                each.chmod(0o700)


def prepare(folder):
    if folder.is_dir() and not tree(folder):
        (folder / "old").write_bytes(b"old")
        (folder / "kept").mkdir()
        (folder / "kept" / "word").write_text("kept")
        (folder / "checkpoints").mkdir()


@pytest.mark.parametrize("fault", [full_disk, file_size_limit, missing_folder, read_only_folder])
@pytest.mark.parametrize("write", WRITERS)
def test_a_fault_is_told_with_the_path_and_keeps_what_was_there(write, fault, request):
    with fault(request) as folder:
        prepare(folder)
        before = tree(folder)
        with pytest.raises(DataError) as raised:
            write(folder)
        assert tree(folder) == before
    assert str(raised.value).startswith(str(folder))


@pytest.mark.parametrize("write", WRITERS)
def test_files_have_the_permissions_that_the_umask_leaves(write, tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path)
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


@pytest.fixture(params=["links", "no links"])
def hard_links(request, monkeypatch):
    """A file system with and without hard links."""

    def refused(*paths):
        raise PermissionError(errno.EPERM, "not supported")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refused)


@pytest.mark.parametrize("new", [atomic.new_file, atomic.new_folder])
def test_what_appeared_meanwhile_is_kept(new, hard_links, tmp_path):
    with new(tmp_path / "made", overwrite=False):
        pass
    before = tree(tmp_path)
    for kept in ("folder", "file"):
        path = tmp_path / kept
        with pytest.raises(DataError), new(path, overwrite=False):
            path.mkdir() if kept == "folder" else path.write_text("kept")
            (path if kept == "file" else path / "kept").write_text("kept")
    assert tree(tmp_path) == {**before, Path("folder"): False, Path("folder/kept"): b"kept", Path("file"): b"kept"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_several_outputs_get_their_names_together_or_not_at_all(overwrite, hard_links, tmp_path):
    paths = [tmp_path / name for name in "ab"]

    def write():
        before = tree(tmp_path)
        for path in paths:
            atomic.write_text(path, "new")
        assert {name: content for name, content in tree(tmp_path).items() if name.suffix != ".tmp"} == before

    with pytest.raises(ValueError), atomic.named_together(paths, overwrite):
        write()
        raise ValueError
    assert tree(tmp_path) == {}
    with nullcontext() if overwrite else pytest.raises(DataError), atomic.named_together(paths, overwrite):
        write()
        paths[1].write_text("kept")
    assert tree(tmp_path) == ({Path("a"): b"new", Path("b"): b"new"} if overwrite else {Path("b"): b"kept"})
    paths[1].unlink()
    paths[0].unlink(missing_ok=True)
    with atomic.named_together(paths, overwrite):
        write()
    assert tree(tmp_path) == {Path("a"): b"new", Path("b"): b"new"}


@pytest.mark.parametrize("trouble", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("new", [atomic.new_file, atomic.new_folder])
def test_a_block_that_ends_well_replaces_and_one_that_fails_changes_nothing(tmp_path, trouble, new):
    path = tmp_path / "x"
    for word in ("one", "two"):
        with new(path) as made:
            made.write(word.encode()) if new is atomic.new_file else (made / word).touch()
            assert path.exists() == (word == "two")
        assert (os.listdir(path) if path.is_dir() else [path.read_text()]) == [word]
    before = tree(tmp_path)
    with pytest.raises(trouble), new(path):
        raise trouble
    assert tree(tmp_path) == before


KILLED = {
    "file": """
from elbocli.files.atomic import new_file
def work(word):
    with new_file(path) as file:
        file.write(word)
def content():
    return path.read_bytes()
""",
    "folder": """
from elbocli.files.atomic import new_folder
def work(word):
    with new_folder(path) as folder:
        (folder / word.decode()).touch()
def content():
    (only,) = path.iterdir()
    return only.name.encode()
""",
}
EVERY_CALL = """
from elbocli.files.atomic import sweep
path = Path(sys.argv[1])
work(b"old")
k, seen = 0, []
while crashed(lambda: work(b"new"), k):
    sweep(path.parent)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], k
    seen.append(content())
    work(b"old")
    k += 1
assert content() == b"new" and set(seen) == {b"old", b"new"}, seen
print(k)
"""


@pytest.mark.parametrize("kind", KILLED)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path, crashes, kind):
    assert int(crashes(KILLED[kind] + EVERY_CALL, tmp_path / "x")) >= 3


@pytest.mark.parametrize("name", ["file", "two\nlines", "a.b.c"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, python, name):
    others = {".other.7.tmp", f".{name}.tmp", f"{name}.7.tmp"}
    for other in others:
        (tmp_path / other).touch()
    killed = "import os, sys; from pathlib import Path; from elbocli.files import atomic; path = Path(sys.argv[1])\n"
    for left in ("new_file", "new_folder"):
        python(f"{killed}manager = atomic.{left}(path); manager.__enter__(); os._exit(0)", tmp_path / name)
        assert len(os.listdir(tmp_path)) == 4
    atomic.write_text(tmp_path / name, "whole")
    assert {*os.listdir(tmp_path)} == {name, *others}


def test_what_another_process_is_writing_is_not_swept(tmp_path, python):
    (tmp_path / ".left.7.tmp").touch()
    with atomic.new_file(tmp_path / "file") as file, atomic.new_folder(tmp_path / "folder") as folder:
        file.write(b"half")
        (folder / "a").touch()
        python("import sys; from pathlib import Path; from elbocli.files.atomic import sweep; sweep(Path(sys.argv[1]))", tmp_path)
        assert not (tmp_path / ".left.7.tmp").exists() and not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"half" and (tmp_path / "folder" / "a").exists()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for write in (atomic.new_file, atomic.new_folder):
        with pytest.raises(DataError), write(tmp_path / "pipe"):
            pass
    assert os.listdir(tmp_path) == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_a_lock_admits_one_holder_until_its_end_or_its_kill(tmp_path, python):
    take = "import os, sys; from pathlib import Path; from elbocli.files import atomic\n"
    python(f"{take}atomic.locked(Path(sys.argv[1]), 'run').__enter__(); os._exit(0)", tmp_path / "lock")
    for _ in range(2):
        with (
            atomic.locked(tmp_path / "lock", "run"),
            pytest.raises(DataError, match=r"^run: "),
            atomic.locked(tmp_path / "lock", "run", wait=0.2),
        ):
            pytest.fail("two holders")


@pytest.mark.usefixtures("no_locks")
def test_without_locks_all_is_written_and_one_warning_is_given(tmp_path):
    with heard() as lines:
        for write in WRITERS:
            (folder := tmp_path / write.__name__).mkdir()
            write(folder)
            assert any(folder.iterdir())
    assert len(lines) == 1


@pytest.mark.usefixtures("nfs_locks")
def test_on_nfs_leftovers_are_removed_unless_they_are_being_written(tmp_path):
    (tmp_path / ".file.7.tmp").touch()
    (tmp_path / ".folder.7.tmp").mkdir()
    with atomic.new_file(tmp_path / "file") as file, atomic.locked(tmp_path / "lock", "run"):
        atomic.sweep(tmp_path)
        file.write(b"whole")
        with pytest.raises(DataError), atomic.locked(tmp_path / "lock", "run"):
            pytest.fail("two holders")
    assert sorted(os.listdir(tmp_path)) == ["file", "lock"] and (tmp_path / "file").read_bytes() == b"whole"


def test_text_and_json_read_back_and_no_number_is_left_out(tmp_path):
    path = tmp_path / "x"
    atomic.write_text(path, "λ\n")
    assert path.read_bytes() == "λ\n".encode()
    atomic.write_json(path, {"λ": [1, None]})
    with pytest.raises(ValueError):
        atomic.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"λ": [1, None]} and os.listdir(tmp_path) == ["x"]
