"""A release: the files that are published, the same bytes each time, and a check that tag, changes and version agree.

`python tools/release.py dist` makes them; `python tools/release.py check v0.2.0` checks that tag.
"""

import gzip
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOME_TIME = 1_700_000_000
"""Seconds since 1970, where no commit says a time."""
EPOCH = "SOURCE_DATE_EPOCH"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def tracked() -> list[str]:
    """Names of the files that git tracks; in an unpacked sdist of those that it lists."""
    if (ROOT / ".git").exists():
        return sorted(name for name in _git("ls-files", "-z").split("\0") if name and (ROOT / name).exists())
    listed = (ROOT / "elbocli.egg-info" / "SOURCES.txt").read_text("utf-8").split("\n")
    return sorted(name for name in listed if name and not name.startswith("elbocli.egg-info/"))


def epoch() -> int:
    """The time that all files get: SOURCE_DATE_EPOCH, else the last commit's."""
    if EPOCH in os.environ:
        return int(os.environ[EPOCH])
    return int(_git("log", "-1", "--format=%ct")) if (ROOT / ".git").exists() else SOME_TIME


def copied(folder: Path) -> Path:
    """A copy of what is tracked, in that new folder: no older build lies in it, and all of it has one time and plain modes."""
    for name in tracked():
        to = folder / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to)
        to.chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)
        os.utime(to, (epoch(), epoch()))
    return folder


def _built(source: Path, kind: str, out: Path) -> Path:
    """Call the build backend in a folder, as `build` does; return the file that it made."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    python = f"import os; os.umask(0o022); {code}"
    environment = {**os.environ, EPOCH: str(epoch()), "PYTHONHASHSEED": "0"}
    environment.pop("PYTHONPATH", None)
    line = [sys.executable, "-W", "ignore", "-c", python]
    said = subprocess.run(line, cwd=source, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if said.returncode:
        raise SystemExit(said.stdout + said.stderr)
    return out / said.stdout.split()[-1]


def repacked(path: Path) -> None:
    """Write a .tar.gz anew: members by name, all of one time and of nobody, with plain modes."""
    content = io.BytesIO()
    with tarfile.open(path) as before, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as after:
        for member in sorted(before.getmembers(), key=lambda each: each.name):
            found = tarfile.TarInfo(member.name)
            found.type = member.type
            found.size = member.size
            found.mtime = epoch()
            found.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            after.addfile(found, before.extractfile(member))
    path.write_bytes(gzip.compress(content.getvalue(), mtime=0))


def make_sdist(out: Path) -> Path:
    """An sdist in that folder."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = _built(copied(Path(folder) / "source"), "sdist", out.absolute())
    repacked(path)
    return path


def make_wheel(out: Path) -> Path:
    """A wheel in that folder."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return _built(copied(Path(folder) / "source"), "wheel", out.absolute())


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel with its bytecode in a new environment, which takes dependencies from the running one; return its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    line = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--compile", "--no-deps", "--no-index", wheel]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(line, check=True, capture_output=True, timeout=120, env=environment)
    site = next((folder / "lib").glob("python*/site-packages"))
    click = importlib.util.find_spec("click")
    assert click is not None and click.origin is not None
    (site / "dependencies.pth").write_text(f"{Path(click.origin).parent.parent}\n")
    return python


def disagreement(tag: str = "") -> str:
    """A sentence on what doesn't agree of tag, the newest heading of CHANGELOG.md and elbocli.__version__; '' if all do."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "elbocli/version.py").read_text("utf-8"), re.MULTILINE)
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert found is not None and heading is not None
    if heading[1] != found[1]:
        return f"CHANGELOG.md begins with {heading[1]}, and elbocli.__version__ is {found[1]}"
    return f"the tag is {tag}, and elbocli.__version__ is {found[1]}" if tag not in ("", f"v{found[1]}") else ""


def main(what: str, given: str) -> int:
    """Do `dist FOLDER` or `check TAG`; return the exit code."""
    if what == "check":
        print(disagreement(given) or f"{given}: tag, CHANGELOG.md and version agree")
        return int(bool(disagreement(given)))
    made = [make_sdist(Path(given)), make_wheel(Path(given))]
    print(*made, sep="\n")
    if importlib.util.find_spec("twine") is None:
        print("twine is not installed: what the index would say of them was not checked", file=sys.stderr)
        return 0
    return subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, made)], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
