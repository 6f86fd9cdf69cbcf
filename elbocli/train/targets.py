"""External loggers: targets of --log-to, which get a run's numbers and previews."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elbocli.errors import UsageError
from elbocli.files.outputs import check_outputs
from elbocli.run.config import read_config
from elbocli.runtime.progress import log

LINES = ".jsonl"
SAMPLES = "samples"  # key of a preview (the path of a PNG file) among the values of a step
Target = Callable[[int, Mapping[str, Any]], object]  # (step, values) → anything


def write_line(file: str, step: int, values: Mapping[str, Any]) -> None:
    """Append the values to a JSONL file."""
    if SAMPLES not in values:
        with open(file, "a") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")


def open_tensorboard(run: Path, step: int) -> Target:
    """Return a target that writes TensorBoard events into RUN/tensorboard, and hides events after `step`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)  # hides later steps in old files

    def write(step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if key == SAMPLES:
                writer.add_image(key, np.atleast_3d(np.asarray(Image.open(value))), step, dataformats="HWC")
            elif value is not None:
                group, _, rest = key.partition("_")
                writer.add_scalar(f"{group}/{rest}" if group in ("val", "eval") else f"train/{key}", value, step)
        writer.flush()

    return write


def _shown(values: Mapping[str, Any], picture: Callable[[str], Any]) -> dict[str, Any]:
    return {key: picture(str(value)) if key == SAMPLES else value for key, value in values.items() if value is not None}


def open_wandb(run: Path, step: int) -> Target:
    """Return a target that logs to Weights & Biases, under the run's id. step: not used."""
    import wandb

    config = read_config(run)
    for key, value in {"project": "elbo", "name": run.resolve().name, "dir": run, "console": "off"}.items():
        os.environ.setdefault(f"WANDB_{key.upper()}", str(value))  # the user's environment variables come first
    begun = wandb.init(id=config.run_id, resume="allow", config=config.json(), allow_val_change=True)
    begun.define_metric("*", step_metric="step")  # W&B's counter can't go back when a run resumes at an earlier step
    return lambda step, values: begun.log({"step": step, **_shown(values, wandb.Image)})


def open_trackio(run: Path, step: int) -> Target:
    """Return a target that logs to trackio. step: not used."""
    import trackio

    config = read_config(run)
    # trackio continues the logs of an equal name, so the name contains the run id.
    name, project = f"{run.resolve().name}-{str(config.run_id)[:8]}", os.environ.get("TRACKIO_PROJECT", "elbo")
    begun = trackio.init(project=project, name=name, config=config.json(), resume="allow")
    return lambda step, values: begun.log(_shown(values, trackio.Image), step=step)


PACKAGES = {"tensorboard": open_tensorboard, "wandb": open_wandb, "trackio": open_trackio}


def check_targets(words: Iterable[str], run: Path) -> None:
    """Check the words of --log-to. Raises UsageError."""
    for word in words:
        if word.endswith(LINES):
            check_outputs([(Path(word), ["numbers by step"])], [run], overwrite=True)
        elif word not in PACKAGES:
            raise UsageError(f"--log-to {word}: expected {', '.join(PACKAGES)} or the path of a {LINES} file")
        elif find_spec(word) is None:
            raise UsageError(f"--log-to {word}: not installed; get it with pip install 'elbocli[{word}]'")


class LogTargets:
    """Writer to all targets of --log-to; a target that fails is dropped.

    words: names in PACKAGES, or paths of JSONL files. step: last step done before the start.
    """

    def __init__(self, words: Iterable[str], run: Path, step: int):
        self._targets = dict[str, Target]()
        for word in words:
            with self._dropping(word):
                self._targets[word] = PACKAGES[word](run, step) if word in PACKAGES else partial(write_line, word)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for word, target in list(self._targets.items()):
            with self._dropping(word):
                target(step, values)

    def finish(self) -> None:
        """Wait until trackio has sent all values. wandb itself sends its values at the end of the process."""
        if "trackio" in self._targets:
            with self._dropping("trackio"):
                import trackio

                trackio.finish()

    @contextmanager
    def _dropping(self, word: str) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):  # standard output is for the run's path
                yield
        except Exception as error:  # the packages raise errors of any type
            log.warning("--log-to %s: %s; this target gets no more values until the run is resumed", word, error)
            self._targets.pop(word, None)
