"""Places besides the run's folder that its numbers and previews go to: `--log-to`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from elbocli.errors import UsageError
from elbocli.files.recognise import check_outputs

LINES = ".jsonl"


class LogTarget:
    """One such place, for one start of a run.

    A kind of them overrides what it can do. Whatever its methods raise is told as a warning, and training goes on.
    """

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the numbers of a line of metrics.jsonl; those of validation begin with val_."""

    def picture(self, step: int, path: Path) -> None:
        """Take a preview, a PNG file."""

    def close(self) -> None:
        """End, with all that was taken safe."""


class LinesFile(LogTarget):
    """A file that gets the lines of metrics.jsonl. It only grows: steps that a run does again are in it again."""

    def __init__(self, path: Path):
        self._file = open(path, "ab")  # noqa: SIM115 - open as long as the run

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line. What there is no room for waits in the file's buffer, and comes before the next."""
        self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _tensorboard(run: Path, step: int) -> LogTarget:
    from elbocli.train.tensorboard import TensorBoard

    return TensorBoard(run, step)


def _wandb(run: Path, step: int) -> LogTarget:
    from elbocli.train.wandb import WeightsAndBiases

    return WeightsAndBiases(run)


PACKAGES: dict[str, Callable[[Path, int], LogTarget]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Name of a package, and of the extra that brings it → (run's folder, step that the run goes on after) → target."""


def check(words: Iterable[str], run: Path) -> None:
    """Raise UsageError for a word that names no target, one whose package isn't installed, or a file of another kind."""
    for word in words:
        if word not in PACKAGES and not word.endswith(LINES):
            raise UsageError(
                f"--log-to {word}: expected {', '.join(PACKAGES)} or the path of a file that ends in {LINES}"
            )
        if word in PACKAGES and find_spec(word) is None:
            raise UsageError(
                f"--log-to {word}: {word} is not installed; get it with pip install 'elbocli[{word}]', or leave it out"
            )
        if word not in PACKAGES:
            check_outputs([(Path(word), ["numbers by step"])], [run], overwrite=True)


class LogTargets:
    """All targets of one start of a run that goes on after `step`. None of them can end training.

    What one can't take is told to `warn`, once while it lasts. Raises UsageError for a run whose name one can't write.
    """

    def __init__(self, words: Iterable[str], run: Path, step: int, warn: Callable[[str], None]):
        self._warn = warn
        self._told: dict[str, str] = {}
        self._targets: dict[str, LogTarget] = {}
        for word in words:
            try:
                self._targets[word] = PACKAGES[word](run, step) if word in PACKAGES else LinesFile(Path(word))
            except UsageError:
                raise
            except Exception as error:  # a package's own
                self._tell(word, f"{error}; nothing goes there in this start of the run")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Give all of them numbers."""
        self._each(lambda target: target.write(step, values))

    def picture(self, step: int, path: Path) -> None:
        """Give all of them a preview."""
        self._each(lambda target: target.picture(step, path))

    def close(self) -> None:
        """End all of them."""
        self._each(lambda target: target.close())

    def _each(self, act: Callable[[LogTarget], None]) -> None:
        for word, target in self._targets.items():
            try:
                act(target)
            except Exception as error:  # a package's own
                self._tell(word, str(error))
            else:
                self._told.pop(word, None)

    def _tell(self, word: str, trouble: str) -> None:
        if trouble != self._told.get(word):
            self._warn(f"--log-to {word}: {trouble}")
        self._told[word] = trouble
