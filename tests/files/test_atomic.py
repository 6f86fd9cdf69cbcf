import os
import random
import subprocess
import sys
import time

import pytest

from elbocli.errors import DataError, UsageError
from elbocli.files import atomic
from elbocli.files.recognise import check_outputs

KILLED = """
import sys
from pathlib import Path
from elbocli.files.atomic import new_file
print("go", flush=True)
n = 0
while True:
    n += 1
    with new_file(Path(sys.argv[1])) as file:
        for _ in range(200):
            file.write(b"%07d\\n" % n * 50)
"""


def test_a_kill_during_writing_leaves_a_whole_file(tmp_path):
    path, seen = tmp_path / "file", set()
    path.write_bytes(b"0000000\n" * 10_000)
    delays = random.Random(0)
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        try:
            assert child.stdout.readline() == b"go\n"
            time.sleep(delays.uniform(0, 0.05))
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        content = path.read_bytes()
        assert len(content) == 80_000
        assert content == content[:8] * 10_000
        seen.add(content[:8])
    assert len(seen) > 1


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new(tmp_path, crashes):
    code = """
from elbocli.files.atomic import new_file
path = Path(sys.argv[1])
path.write_bytes(b"old")
def work():
    with new_file(path) as file:
        file.write(b"new")
k, seen = 0, []
while crashed(work, k):
    seen.append(path.read_bytes())
    k += 1
assert path.read_bytes() == b"new"
assert set(seen) == {b"old", b"new"}, seen
print(k)
"""
    assert int(crashes(code, tmp_path / "file")) >= 3


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "file"
    with atomic.new_file(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("trouble", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, trouble):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(trouble), atomic.new_file(path) as file:
        file.write(b"half")
        raise trouble
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_replaces_what_was_there_and_a_failed_one_does_not(tmp_path):
    path = tmp_path / "folder"
    for word in ("one", "two"):
        with atomic.new_folder(path) as folder:
            (folder / word).write_text(word)
        assert os.listdir(path) == [word]
    with pytest.raises(ValueError, match="no"), atomic.new_folder(path) as folder:
        (folder / "three").write_text("three")
        raise ValueError("no")
    assert os.listdir(path) == ["two"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new(tmp_path, crashes):
    code = """
from elbocli.files.atomic import new_folder, sweep
path = Path(sys.argv[1])
def work(word="new"):
    with new_folder(path) as folder:
        (folder / word).write_bytes(b"whole")
work("old")
k, seen = 0, set()
while crashed(work, k):
    sweep(path.parent)
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"], k
    (name,) = [file.name for file in path.iterdir()]
    seen.add(name)
    shutil.rmtree(path)
    work("old")
    k += 1
assert seen == {"old", "new"} and [file.name for file in path.iterdir()] == ["new"]
"""
    crashes(code, tmp_path / "folder")


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(DataError, match=r"gone/file: could not write: No such file"),
        atomic.new_file(tmp_path / "gone/file"),
    ):
        pass


def test_a_full_disk_keeps_the_old_file_and_says_so(small_disk):
    path = small_disk / "file"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="No space left"), atomic.new_file(path) as file:
        for _ in range(1024):
            file.write(bytes(1024))
    assert path.read_bytes() == b"old"
    assert os.listdir(small_disk) == ["file"]
    path.unlink()


def test_text_and_json_read_back(tmp_path):
    atomic.write_text(tmp_path / "text", "λ\n")
    atomic.write_json(tmp_path / "json", {"λ": [1, None]})
    assert (tmp_path / "text").read_text("utf-8") == "λ\n"
    assert (tmp_path / "json").read_text().endswith("}\n")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_lock_admits_one_holder_and_is_free_again_after(tmp_path):
    lock = tmp_path / "lock"
    with (
        atomic.locked(lock, "run"),
        pytest.raises(DataError, match="run: another elbo process"),
        atomic.locked(lock, "run"),
    ):
        pytest.fail("two holders")
    with atomic.locked(tmp_path / "lock", "run"):
        pass


def test_a_killed_holder_frees_the_lock(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom elbocli.files.atomic import locked\n"
        "with locked(Path(sys.argv[1]), 'run'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(DataError), atomic.locked(tmp_path / "lock", "run"):
            pass
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with atomic.locked(tmp_path / "lock", "run"):
        pass


def test_a_pipe_is_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UsageError):
        check_outputs([(path, ["samples"])], [], True)
    for write in (atomic.new_file, atomic.new_folder):
        with pytest.raises(DataError), write(path):
            pass
    assert path.is_fifo() and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["file", "two\nlines", "a.b.c"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, python, name):
    path, others = tmp_path / name, [tmp_path / ".other.7.tmp", tmp_path / f".{name}.tmp", tmp_path / f"{name}.7.tmp"]
    for other in others:
        other.touch()
    killed = "import os, sys; from pathlib import Path; from elbocli.files import atomic; path = Path(sys.argv[1])\n"
    for left in ("new_file(path); manager.__enter__().write(b'a')", "new_folder(path); manager.__enter__()"):
        python(f"{killed}manager = atomic.{left}; os._exit(0)", path)
        assert len(os.listdir(tmp_path)) == 4
        assert sum(atomic.ASIDE.fullmatch(found.name) is not None for found in tmp_path.iterdir()) == 2
    python(f"{killed}atomic.write_text(path, 'whole')", path)
    assert sorted(os.listdir(tmp_path)) == sorted([name, *(other.name for other in others)])


def test_what_another_process_is_writing_is_not_swept(tmp_path, python):
    sweep = "import sys; from pathlib import Path; from elbocli.files.atomic import sweep; sweep(Path(sys.argv[1]))"
    (tmp_path / ".left.7.tmp").touch()
    with atomic.new_file(tmp_path / "file") as file, atomic.new_folder(tmp_path / "folder") as folder:
        file.write(b"half")
        (folder / "a").touch()
        python(sweep, tmp_path)
        assert not (tmp_path / ".left.7.tmp").exists()
    assert (tmp_path / "file").read_bytes() == b"half" and (tmp_path / "folder" / "a").exists()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o002)
    try:
        atomic.write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o664
