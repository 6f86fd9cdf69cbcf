"""External loggers: targets of --log-to, which get a run's numbers and previews."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from elbocli.errors import UsageError
from elbocli.runs.config import read_config
from elbocli.runtime.progress import log

SAMPLES = "samples"  # key of a preview (the path of a PNG file) among the values of a step
Values = Mapping[str, float | Path | None]  # numbers, and the path of a preview
Target = Callable[[int, Values], object]  # (step, values) → anything


def open_tensorboard(run: Path, step: int) -> Target:
    """Return a target that writes TensorBoard events into RUN/tensorboard, and hides events after `step`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)  # hides later steps in old files

    def write(step: int, values: Values) -> None:
        for key, value in values.items():
            if isinstance(value, Path):
                writer.add_image(key, np.atleast_3d(np.asarray(Image.open(value))), step, dataformats="HWC")
            elif value is not None:
                group, _, rest = key.partition("_")
                writer.add_scalar(f"{group}/{rest}" if group in ("val", "eval") else f"train/{key}", value, step)
        writer.flush()

    return write


def open_wandb(run: Path, step: int) -> Target:
    """Return a target that logs to Weights & Biases, under the run's id. step: not used."""
    import wandb

    config = read_config(run)
    for key, value in {"project": "elbo", "name": run.resolve().name, "dir": run, "console": "off"}.items():
        os.environ.setdefault(f"WANDB_{key.upper()}", str(value))  # the user's environment variables come first
    begun = wandb.init(id=config.run_id, resume="allow", config=config.json(), allow_val_change=True)
    begun.define_metric("*", step_metric="step")  # W&B's counter can't go back when a run resumes at an earlier step

    def write(step: int, values: Values) -> None:
        shown = {key: wandb.Image(str(value)) if key == SAMPLES else value for key, value in values.items() if value is not None}
        begun.log({"step": step, **shown})

    return write


PACKAGES = {"tensorboard": open_tensorboard, "wandb": open_wandb}


def check_targets(words: Iterable[str]) -> None:
    """Check the words of --log-to. Raises UsageError."""
    for word in words:
        if word not in PACKAGES:
            raise UsageError(f"--log-to {word}: expected {' or '.join(PACKAGES)}")
        if find_spec(word) is None:
            raise UsageError(f"--log-to {word}: not installed; get it with pip install 'elbocli[{word}]'")


class LogTargets:
    """Writer to all targets of --log-to; a target that fails is dropped.

    words: names in PACKAGES. step: last step done before the start.
    """

    def __init__(self, words: Iterable[str], run: Path, step: int):
        self._targets = dict[str, Target]()
        for word in words:
            with self._dropping(word):
                self._targets[word] = PACKAGES[word](run, step)

    def write(self, step: int, values: Values) -> None:
        for word, target in list(self._targets.items()):
            with self._dropping(word):
                target(step, values)

    @contextmanager
    def _dropping(self, word: str) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):  # standard output is for the run's path
                yield
        except Exception as error:  # the packages raise errors of any type
            log.warning("--log-to %s: %s; this target gets no more values until the run is resumed", word, error)
            self._targets.pop(word, None)
