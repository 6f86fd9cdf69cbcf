import os
import socket
import threading
import time

import pytest

from elbocli.files import opening
from elbocli.files.opening import check_file, open_file, open_stream


@pytest.fixture
def odd(tmp_path):
    """odd(kind): a path that is no file."""

    def make(kind):
        path = tmp_path / kind.replace(" ", "-")
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        elif kind == "Is a directory":
            path.mkdir()
        return path

    return make


@pytest.mark.parametrize("opens", [check_file, open_file, open_stream])
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "Is a directory", "No such file"])
def test_only_files_are_opened(kind, opens, odd, monkeypatch):
    monkeypatch.setattr(opening, "WAIT_S", 0.1)
    start = time.monotonic()
    with pytest.raises(OSError, match=kind) as told:
        opens(odd(kind))
    assert kind in told.value.strerror
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("opens", [open_file, open_stream])
def test_a_file_and_a_link_to_one_are_opened(opens, tmp_path):
    (tmp_path / "a").write_bytes(b"0123")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "b"):
        with opens(tmp_path / name) as file:
            assert file.read(2) == b"01" and file.seek(3) == 3 and file.read() == b"3"


def test_a_file_that_becomes_a_pipe_meanwhile_is_no_file(tmp_path, odd, monkeypatch):
    pipe = odd("a pipe")
    monkeypatch.setattr(opening, "check_file", lambda path: None)
    with pytest.raises(OSError, match="a pipe"):
        open_file(pipe)


@pytest.mark.parametrize("waits", [0, 0.2])
def test_a_pipe_is_read_from_its_first_byte_to_its_end(waits, odd):
    """The writer opens it late, and writes in pieces, some of them after a while."""
    pipe, sent = odd("a pipe"), os.urandom(300_000)

    def write():
        time.sleep(waits)
        with open(pipe, "wb", buffering=0) as file:
            time.sleep(waits)
            for start in range(0, len(sent), 50_000):
                file.write(sent[start : start + 50_000])
                time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    with open_stream(pipe) as file:
        found = file.read(10) + file.read()
    thread.join()
    assert found == sent
