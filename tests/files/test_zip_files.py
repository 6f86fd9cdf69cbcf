import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.files.zip_files import open_zip, read_member


def zipped(count, method=zipfile.ZIP_STORED, content=b"", comment=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.comment = comment
        for number in range(count):
            archive.writestr(f"{number}", content)
    return buffer.getvalue()


@given(st.integers(0, 12), st.integers(0, 12), st.binary(max_size=50))
def test_an_archive_of_too_many_members_is_refused_and_no_other(count, most, comment):
    file = io.BytesIO(zipped(count, comment=comment.replace(b"PK", b"")))
    if count > most:
        with pytest.raises(zipfile.BadZipFile, match=f"more than {most} members"):
            open_zip(file, most)
    else:
        assert len(open_zip(file, most).infolist()) == count


def test_members_are_counted_in_archives_of_any_size(monkeypatch):
    """Those with more than 65,535 members have another end."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5)
    content = zipped(9)
    assert b"PK\6\6" in content and len(open_zip(io.BytesIO(content), 9).infolist()) == 9
    with pytest.raises(zipfile.BadZipFile, match="more than 8"):
        open_zip(io.BytesIO(content), 8)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_is_unpacked_up_to_a_bound(method):
    with open_zip(io.BytesIO(zipped(1, method, bytes(10_000)))) as archive:
        (info,) = archive.infolist()
        assert read_member(archive, info, 10_000) == bytes(10_000)
        with pytest.raises(ValueError, match="0 has 10000 bytes, more than 9999"):
            read_member(archive, info, 9_999)
        info.file_size = 5_000
        with pytest.raises((ValueError, zipfile.BadZipFile)):
            read_member(archive, info, 9_999)


@given(st.data())
def test_a_damaged_archive_is_refused_in_words(data):
    content = bytearray(zipped(3, content=b"abc"))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        open_zip(io.BytesIO(bytes(content[: data.draw(st.integers(0, len(content)))])))
    except zipfile.BadZipFile as error:
        assert str(error)


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=5), st.data())
def test_an_archive_whose_members_reach_into_each_other_is_refused(contents, data):
    """Whatever Python's zipfile, which does so in some releases, says of it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(str(number), content)
        infos = archive.infolist()
        first = data.draw(st.integers(0, len(infos) - 2))
        infos[first + 1].header_offset -= data.draw(st.integers(2, 31 + len(contents[first])))  # written at the close
    with pytest.raises(zipfile.BadZipFile, match=rf"'{first}' and '{first + 1}' overlap"):
        open_zip(buffer)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        open_zip(tmp_path / "gone.zip")
    with pytest.raises(zipfile.BadZipFile, match="no end"):
        open_zip(io.BytesIO(b"PK"))
