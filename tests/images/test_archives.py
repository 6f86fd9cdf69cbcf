"""What is found in folders and archives, and what is left out of them."""

import io
import subprocess
import tarfile
import zipfile

import pytest

from elbocli.images.kinds.trees import FOLDER, list_folder, list_tar, list_zip
from elbocli.images.registry import Span


def refs_of(path):
    return dict(list_tar(path))


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in ("a/1.png", "a/.2.png", "b c/é/2.png", ".git/x", "__MACOSX/a/._1.png", "a/Thumbs.db", "x.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "empty").mkdir()
    return root


WANTED = ["a/", "a/1.png", "b c/", "b c/é/", "b c/é/2.png", "empty/", "x.txt"]


def test_a_folder_its_tar_and_its_zip_list_the_same(tree, tmp_path):
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", tree, "."], check=True)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in tree.rglob("*"):
            archive.write(path, path.relative_to(tree))
    found = [
        list(list_folder(tree)),
        list(list_tar(tmp_path / "x.tar")),
        list(list_zip(tmp_path / "x.zip")),
    ]
    for entries in found:
        assert sorted(name for name, _ in entries) == WANTED
        for name, ref in entries:
            assert ref is FOLDER if name.endswith("/") else ref.read() == name.encode()


def add(tar, name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def test_a_tar_in_a_tar_is_a_folder_and_its_files_lie_in_the_outer_one(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add(tar, "1.png", b"one")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "n01.tar", inner.getvalue())
        add(tar, "deep/n02.tar", inner.getvalue())
    refs = refs_of(tmp_path / "x.tar")
    assert sorted(refs) == ["deep/n02/", "deep/n02/1.png", "n01/", "n01/1.png"]
    for name in ("n01/1.png", "deep/n02/1.png"):
        ref = refs[name]
        assert isinstance(ref, Span) and ref.path == str(tmp_path / "x.tar") and ref.read() == b"one"


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_style_of_tar_keeps_long_names(tmp_path, style):
    name = "class/" + "x" * 90 + ".png"
    if style != tarfile.USTAR_FORMAT:
        name = "ü" * 60 + "/" + "é" * 120 + ".png"
    with tarfile.open(tmp_path / "x.tar", "w", format=style) as tar:
        add(tar, name, b"content")
    ((found, ref),) = list_tar(tmp_path / "x.tar")
    assert found == name and ref.read() == b"content"


def test_second_names_in_a_tar_are_files_and_links_are_not(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "./a/1.png", b"one")
        add(tar, "a/2.png", type=tarfile.LNKTYPE, linkname="./a/1.png")
        add(tar, "a/3.png", type=tarfile.SYMTYPE, linkname="1.png")
        add(tar, "a/4.png", type=tarfile.LNKTYPE, linkname="gone.png")
        add(tar, "a/5.png", type=tarfile.FIFOTYPE)
    refs = refs_of(tmp_path / "x.tar")
    assert refs["a/2.png"].read() == b"one"
    for name in ("a/3.png", "a/4.png", "a/5.png"):
        assert refs[name].read() == b"", "nothing is there to be an image"
