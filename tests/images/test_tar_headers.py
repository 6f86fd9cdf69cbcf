"""Headers of tars that take for ever, or gigabytes, where tarfile reads them by itself."""

import io
import tarfile
import time

import pytest

from elbocli.images.archives import list_tar
from elbocli.images.tar_headers import BROKEN, LONGEST_HEADER, headers_of


def record(word, value):
    """A word of a PAX header, as POSIX writes it: its own length comes first."""
    rest = f" {word}={value}\n"
    length = len(rest) + len(str(len(rest)))
    return f"{length + (len(str(length)) > len(str(len(rest))))}{rest}".encode()


def block(kind, content):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def tar(*blocks):
    return b"".join(blocks) + block(tarfile.REGTYPE, b"content") + bytes(1024)


def global_words(count):
    return block(tarfile.XGLTYPE, b"".join(record(f"w{i}", 0) for i in range(count)))


HOSTILE = {
    "digits without a word": tar(block(tarfile.XHDTYPE, b"1" * 100_000)),
    "a size of 100,000 digits": tar(block(tarfile.XHDTYPE, record("size", "9" * 100_000))),
    "a time of 100,000 digits": tar(block(tarfile.XHDTYPE, record("mtime", "9" * 100_000))),
    "a sparse map of digits": tar(
        block(tarfile.XHDTYPE, record("GNU.sparse.size", 1) + record("comment", "1" * 100_000))
    ),
    "a header of 2 MB": tar(block(tarfile.XHDTYPE, record("comment", "x" * (2 << 20)))),
    "a name of 2 MB": tar(block(tarfile.GNUTYPE_LONGNAME, b"x" * (2 << 20))),
    "headers on headers": tar(*[block(tarfile.XGLTYPE, record("comment", "x" * 500))] * 3000),
    "words for all files": tar(global_words(1001)),
    "a map that has no end": tar(
        block(tarfile.XHDTYPE, record("GNU.sparse.major", 1) + record("GNU.sparse.minor", 0)),
        block(tarfile.REGTYPE, b"100000000\n" + b"0\n" * (2 << 20)),
    ),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_header_beyond_bounds_ends_the_archive_at_once(content, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    said, start = [], time.process_time()
    list(list_tar(str(tmp_path / "a.tar"), said.append))
    assert len(said) == 1 and "damaged or ends early" in said[0] and len(said[0]) < 500
    with pytest.raises(BROKEN):
        list(headers_of(content).members())
    assert time.process_time() - start < 2


def test_long_names_and_many_words_within_bounds_are_read():
    name = "/".join(["9" * 255] * 15)
    content = io.BytesIO()
    with tarfile.open(
        fileobj=content, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 1000}
    ) as made:
        for number in range(60):
            info = tarfile.TarInfo(f"{name}/{number}.png")
            info.pax_headers = {"SCHILY.xattr.user.note": "y" * (LONGEST_HEADER // 8)} if number < 10 else {}
            made.addfile(info)
    found = [info.name for info in headers_of(content.getvalue()).members()]
    assert found == [f"{name}/{number}.png" for number in range(60)]
