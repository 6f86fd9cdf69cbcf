"""Digests: of a file, of rows however they come, and of parts that add up to the whole."""

import hashlib
import random

from made_data import rows_sha256

from elbocli.files.reading import add_digests, file_sha256


def test_a_files_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 9000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(bytes(range(256)) * 9000).hexdigest()


def test_rows_have_one_digest_however_they_come(images):
    rows = images(9)
    expected = hashlib.sha256(rows.tobytes()).hexdigest()
    assert rows_sha256([rows]) == rows_sha256([rows[:4], list(rows[4:])]) == expected


def test_digests_add_up_in_any_order_and_grouping():
    digests = [hashlib.sha256(bytes([k])).hexdigest() for k in range(40)]
    whole = add_digests(digests)
    random.Random(0).shuffle(digests)
    assert add_digests([add_digests(digests[:7]), add_digests(digests[7:])]) == whole
    assert add_digests([]) == "0" * 64 and add_digests(["f" * 64, "0" * 63 + "1"]) == "0" * 64
