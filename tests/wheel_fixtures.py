"""A wheel of this tree, a fresh environment that it is installed in, and pages of the docs whose code runs there.

Dependencies come from the running environment. `python wheel_fixtures.py PAGE.md` runs the code blocks of a page in order: blocks
of python share their names; one whose first line is `# NAME.py` is written to that file, and so are those after it if it is the
first of the page; a block of yaml is written to the file that its first line names; lines of sh that are a command of elbo's alone run in this
process, others by a shell. Other blocks are only shown.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import run_elbo

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NAMED = re.compile(r"# (\S+\.(?:py|yaml))\n")
ALONE = re.compile(r"elbo ([^|&;<>#$]+?)(?: > (\S+))?")


@dataclass
class Installed:
    """A fresh environment with elbo in it."""

    folder: Path

    @property
    def environment(self):
        """Its variables, without the tree on any path."""
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("ELBO_")}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**own, "ELBO_DEVICE": "cpu", "PATH": path, "VIRTUAL_ENV": str(self.folder)}

    def run(self, *line, cwd):
        """Run a command there, whose `elbo` and `python` are this environment's."""
        return subprocess.run([*map(str, line)], cwd=cwd, env=self.environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build a wheel of this tree."""
    from release import make_wheel  # not there where this file runs as a script

    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The wheel, installed."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    from release import install  # not there where this file runs as a script

    install(wheel, folder)
    return Installed(folder)


@pytest.fixture(scope="session")
def run_page(installed):
    """run_page(page, folder): everything in the page's code blocks, in order, in that folder; what it printed."""

    def run(page, folder):
        shutil.copy(ROOT / "examples" / "digits" / "make_digits.py", folder)
        result = installed.run("python", __file__, page, cwd=folder)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout

    return run


def run_line(line):
    """Run a line of sh."""
    if not (alone := ALONE.fullmatch(line)):
        subprocess.run(["sh", "-e", "-c", line], check=True)
        return
    done = run_elbo(*shlex.split(alone[1]))
    assert done.returncode == 0, (line, done.stderr.decode())
    if alone[2]:
        Path(alone[2]).write_bytes(done.stdout)


def run_blocks(page):
    """Run the code blocks of a page in the folder of this process."""
    names = {"__name__": "__main__"}
    sys.path.append(".")
    blocks = BLOCK.findall(page.read_text())
    first = NAMED.match(next(code for language, code in blocks if language == "python"))
    for language, code in blocks:  # a file is whole before anything uses it
        if language in ("python", "yaml") and (named := NAMED.match(code)):
            Path(named[1]).write_text(code)
        elif language == "python" and first:
            file = Path(first[1])
            file.write_text(file.read_text() + "\n\n" + code)
    for language, code in blocks:
        if language == "python" and not first and not NAMED.match(code):
            exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), names)
        elif language == "sh":
            for line in code.replace("\\\n", " ").splitlines():
                run_line(line)


if __name__ == "__main__":
    run_blocks(Path(sys.argv[1]))
