"""The oldest and the newest that elbo is tested with. `make oldest` and `make newest` ask here.

python bounds.py [SETUP_CFG]: constraints for pip, a line of `name==version` for each lower bound of setup.cfg, of the package and
of its extra `test`. --oldest: the interpreter that python_requires promises, as python3.11. --newest: the newest on the PATH.
--installed: versions of all those packages here. Needs nothing but Python: it runs before anything is installed.
"""

import platform
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

SETUP = Path(__file__).parent.parent / "setup.cfg"
BOUND = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*) >= ([0-9][0-9.]*)")
LAST_MINOR = 30
"""The highest minor version of Python 3 that is looked for."""


def _read(setup: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_string(setup.read_text())
    return parser


def lower_bounds(setup: Path = SETUP) -> dict[str, str]:
    """Versions by name. Raises ValueError when a requirement is no `name >= version`, or one name has two bounds."""
    parser = _read(setup)
    found = dict[str, str]()
    wanted = (parser["options"]["install_requires"], parser["options.extras_require"]["test"])
    for line in filter(None, (line.partition("#")[0].strip() for text in wanted for line in text.splitlines())):
        match = BOUND.fullmatch(line)
        if match is None:
            raise ValueError(f"{setup}: '{line}' is no lower bound; write `name >= version`")
        name, bound = match.groups()
        if found.setdefault(name, bound) != bound:
            raise ValueError(f"{setup}: {name} has the bounds {found[name]} and {bound}; write one")
    return found


def oldest_python(setup: Path = SETUP) -> str:
    """The interpreter's name. Raises ValueError when python_requires is no lower bound."""
    promised = _read(setup)["options"]["python_requires"]
    match = re.fullmatch(r">=\s*(3\.\d+)", promised)
    if match is None:
        raise ValueError(f"{setup}: python_requires is '{promised}'; write `>=3.N`")
    return f"python{match[1]}"


def newest_python() -> str:
    """The name of the newest interpreter that starts; a name alone may be a launcher of what isn't installed."""
    for minor in range(LAST_MINOR, 0, -1):
        if shutil.which(name := f"python3.{minor}") and not subprocess.run([name, "-c", ""], capture_output=True).returncode:
            return name
    return sys.executable


if __name__ == "__main__":
    flags = [word for word in sys.argv[1:] if word.startswith("--")]
    setup = next((Path(word) for word in sys.argv[1:] if not word.startswith("--")), SETUP)
    if flags == ["--oldest"]:
        print(oldest_python(setup))
    elif flags == ["--newest"]:
        print(newest_python())
    elif flags == ["--installed"]:
        print(f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in lower_bounds(setup)), sep=", ")
    else:
        print(*(f"{name}=={bound}" for name, bound in lower_bounds(setup).items()), sep="\n")
