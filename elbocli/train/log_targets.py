"""Places besides the run's folder that its numbers and previews go to: `--log-to`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from elbocli.errors import UsageError
from elbocli.files.checkpoint import read_config
from elbocli.files.recognise import check_outputs
from elbocli.runtime.progress import log

LINES = ".jsonl"


class Target(NamedTuple):
    """One such place, for one start of a run.

    write: takes a step and the numbers of a line of metrics.jsonl. picture: takes a step and a preview, a PNG file. close:
    ends, with all that was taken safe.
    """

    write: Callable[[int, Mapping[str, Any]], object]
    picture: Callable[[int, Path], object]
    close: Callable[[], object]


def open_lines(word: str, run: Path, step: int) -> Target:
    """Open a file that gets the lines of metrics.jsonl. It only grows: steps that a run does again are in it again."""
    file = open(word, "a", buffering=1)  # noqa: SIM115 - open as long as the run

    def write(step: int, values: Mapping[str, Any]) -> None:
        file.write(json.dumps({"step": step, **values}) + "\n")

    return Target(write, lambda *_: None, file.close)


def open_tensorboard(word: str, run: Path, step: int) -> Target:
    """Open a file of events in run/tensorboard. Readers forget what the files before it say of later steps."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / word), purge_step=step + 1)

    def write(step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if value is not None and math.isfinite(value):
                group, name = ("val", key.removeprefix("val_")) if key.startswith("val_") else ("train", key)
                writer.add_scalar(f"{group}/{name}", value, step)

    def picture(step: int, path: Path) -> None:
        with Image.open(path) as sheet:
            writer.add_image("samples", np.atleast_3d(np.asarray(sheet)), step, dataformats="HWC")

    return Target(write, picture, writer.close)


def open_wandb(word: str, run: Path, step: int) -> Target:
    """Open the W&B run of the same id as elbo's run, which goes on when that one does.

    W&B's own variables come before what is chosen here, such as WANDB_MODE: offline keeps all in the run's folder until
    `wandb sync`. Numbers are over `step`, so that what a run does again is not refused.
    """
    import wandb

    config = read_config(run)
    # Without console and git: it would take over both streams, and search the folders above for a repository.
    chosen = {"project": "elbo", "name": run.resolve().name, "dir": run}
    chosen |= {"console": "off", "disable_git": "true", "disable_code": "true"}
    for key, value in chosen.items():
        os.environ.setdefault(f"WANDB_{key.upper()}", str(value))
    told = wandb.init(id=config.run_id, resume="allow", config=config.json(), allow_val_change=True)
    told.define_metric("*", step_metric="step")

    def write(step: int, values: Mapping[str, Any]) -> None:
        told.log({"step": step, **{key: value for key, value in values.items() if value is not None}})

    def picture(step: int, path: Path) -> None:
        told.log({"step": step, "samples": wandb.Image(str(path))})

    return Target(write, picture, told.finish)


PACKAGES: dict[str, Callable[[str, Path, int], Target]] = {"tensorboard": open_tensorboard, "wandb": open_wandb}
"""Name of a package, and of the extra that brings it → (word, run's folder, step that the run goes on after) → target."""


def check(words: Iterable[str], run: Path) -> None:
    """Raise UsageError for a word that names no target, one whose package isn't installed, or a file of another kind."""
    for word in words:
        if word in PACKAGES:
            if find_spec(word) is None:
                raise UsageError(f"--log-to {word}: not installed; get it with pip install 'elbocli[{word}]'")
        elif word.endswith(LINES):
            check_outputs([(Path(word), ["numbers by step"])], [run], overwrite=True)
        else:
            raise UsageError(f"--log-to {word}: expected {', '.join(PACKAGES)} or the path of a {LINES} file")


class LogTargets:
    """All targets of one start of a run that goes on after `step`. One that fails is a warning, and gets nothing more."""

    def __init__(self, words: Iterable[str], run: Path, step: int):
        self._targets: dict[str, Target] = {}
        for word in words:
            with self._warning(word):
                self._targets[word] = PACKAGES.get(word, open_lines)(word, run, step)

    @contextmanager
    def _warning(self, word: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a package's own
            log.warning("--log-to %s: %s; nothing more goes there in this start of the run", word, error)
            self._targets.pop(word, None)

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of all targets."""
        for word, target in list(self._targets.items()):
            with self._warning(word):
                getattr(target, method)(*arguments)
