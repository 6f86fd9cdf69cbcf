"""Digests: of a file, of rows however they come, and of parts that add up to the whole."""

import contextlib
import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from elbocli.files import hashing
from elbocli.files.hashing import DigestBehind, add_digests, file_sha256, rows_sha256


def test_a_files_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 9000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(bytes(range(256)) * 9000).hexdigest()


def test_rows_have_one_digest_however_they_come(images):
    rows = images(9)
    expected = hashlib.sha256(rows.tobytes()).hexdigest()
    assert rows_sha256([rows]) == rows_sha256([rows[:4], list(rows[4:])]) == expected
    assert rows_sha256([np.asfortranarray(rows)]) == expected


def test_digests_add_up_in_any_order_and_grouping():
    digests = [hashlib.sha256(bytes([k])).hexdigest() for k in range(40)]
    whole = add_digests(digests)
    random.Random(0).shuffle(digests)
    assert add_digests([add_digests(digests[:7]), add_digests(digests[7:])]) == whole
    assert add_digests([]) == "0" * 64 and add_digests(["f" * 64, "0" * 63 + "1"]) == "0" * 64


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_a_digest_behind_is_that_of_all_blocks_in_their_order(count, monkeypatch):
    monkeypatch.setattr(hashing, "BEHIND", 50_000)
    blocks = [bytes([k]) * (k * 5000) for k in range(count)]
    with contextlib.closing(DigestBehind(hashlib.sha256(b"begun"))) as behind:
        for number, block in enumerate(blocks, 1):
            behind.update(block)
            if number == count // 2:
                assert behind.hexdigest() == hashlib.sha256(b"begun" + b"".join(blocks[:number])).hexdigest()
        assert behind.hexdigest() == hashlib.sha256(b"begun" + b"".join(blocks)).hexdigest()


@pytest.mark.parametrize("size", [25, 60, 100], ids="{} bytes".format)
def test_no_more_bytes_wait_than_may_be_behind(size, monkeypatch):
    class Slow:
        """A digest that waits to be told."""

        def __init__(self):
            self.going_on = threading.Event()

        def update(self, block):
            self.going_on.wait(30)

        def hexdigest(self):
            return ""

    monkeypatch.setattr(hashing, "BEHIND", 100)
    slow = Slow()
    with contextlib.closing(DigestBehind(slow)) as behind, ThreadPoolExecutor(1) as other:
        try:
            for _ in range(2):
                slow.going_on.clear()
                for _ in range(100 // size):
                    assert other.submit(behind.update, bytes(size)).result(5) is None
                late = other.submit(behind.update, bytes(size))
                with pytest.raises(TimeoutError):
                    late.result(0.2)
                slow.going_on.set()
                assert late.result(30) is None
                behind.hexdigest()
        finally:
            slow.going_on.set()
