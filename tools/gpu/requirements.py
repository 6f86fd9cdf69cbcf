"""Exit 1 if this Python lacks what setup.cfg requires, and print what is missing. Runs on any Python 3."""

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[2] / "setup.cfg"


def numbers(version):
    """Return the leading numbers of a version, such as [2, 8, 0] of 2.8.0a0+5228986."""
    return [int(part) for part in re.match(r"[\d.]*\d", version).group().split(".")]


def missing():
    """Return the requirements that this Python doesn't meet, as in setup.cfg."""
    options = configparser.ConfigParser()
    options.read(str(SETUP))
    python = options["options"]["python_requires"]
    if list(sys.version_info[:2]) < numbers(python.strip(">=")):
        return ["Python " + python]
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for requirement in options["options"]["install_requires"].split("\n")[1:]:
        name, _, bound = requirement.partition(" >= ")
        try:
            met = numbers(version(name)) >= numbers(bound)
        except PackageNotFoundError:
            met = False
        found += [] if met else [requirement]
    return found


if __name__ == "__main__":
    if missing():
        sys.exit(sys.executable + " lacks " + ", ".join(missing()))
