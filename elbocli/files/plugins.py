"""Plug-ins: Python files that declare networks, weightings and more.

elbo runs a plug-in file only if the user names the file on the command line or in the environment.
"""

import sys
import traceback
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from elbocli.errors import ElboError, PluginError, UsageError
from elbocli.files.reading import file_sha256
from elbocli.files.records import Record
from elbocli.runtime.progress import log

PREFIX = "elbo_plugin_"


class PluginFile(Record):
    """Plug-in that a run needs. file: name without folders."""

    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.file} ({self.sha256[:12]})"


_RUN: dict[Path, PluginFile] = {}  # plug-ins run so far, by path


def run_plugin(path: Path) -> None:
    """Run a plug-in (.py), unless already run or imported.

    Raises UsageError if the file is missing or fails.
    """
    place = path.resolve()
    if place in _RUN:
        return
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path}: is missing, or doesn't end in .py; name an existing plug-in")
    plugin = PluginFile(path.name, file_sha256(path))
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))  # so that the file can import others of its folder
    for module in (sys.modules.get(path.stem), sys.modules["__main__"]):
        if module is not None and Path(getattr(module, "__file__", None) or "").resolve() == place:
            break
    else:
        spec = spec_from_file_location(PREFIX + path.stem, place)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # a dataclass looks its module up
        try:
            spec.loader.exec_module(module)
        except PluginError:
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            # elbo's own frames, and those of a library, come after those of the plug-in and of files beside the plug-in
            at = next((frame for frame in reversed(frames) if Path(frame.filename).parent == place.parent), frames[-1])
            reason = f"{error}" if isinstance(error, ElboError) else f"{type(error).__name__}: {error}"
            raise UsageError(f"{path}: {reason}; correct {at.filename}, line {at.lineno}") from error
    _RUN[place] = plugin


def plugins_run() -> list[PluginFile]:
    """Return the plug-ins that have run, sorted by name."""
    return sorted(_RUN.values(), key=lambda plugin: plugin.file)


def check_plugins(needed: Sequence[PluginFile] | None, where: Path) -> None:
    """Raise UsageError unless all needed plug-ins have run; warn if one has changed. where: path to name in messages."""
    digests = {plugin.file: plugin.sha256 for plugin in _RUN.values()}
    for plugin in needed or ():
        if plugin.file not in digests:
            raise UsageError(
                f"{where}: was trained with the plug-in {plugin}; add --plugin FOLDER/{plugin.file}, "
                "or in Python open_run(…, plugins=[…])"
            )
        if digests[plugin.file] != plugin.sha256:
            log.warning("%s: the plug-in %s has changed since this run was trained; results may differ", where, plugin.file)
