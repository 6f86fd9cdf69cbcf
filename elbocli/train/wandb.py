"""A run in Weights & Biases. Needs the extra `wandb`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elbocli.files.checkpoint import read_config
from elbocli.train.log_targets import LogTarget

PROJECT = "elbo"


class WeightsAndBiases(LogTarget):
    """The W&B run of the same id as elbo's run, which goes on when that one does.

    W&B's own variables say the rest, before what is chosen here: WANDB_PROJECT, WANDB_NAME, WANDB_DIR, WANDB_MODE (offline
    keeps all in the run's folder until `wandb sync`). Numbers are over `step`, so that what a run does again is not refused.
    Raises what wandb raises, where it can't begin.
    """

    def __init__(self, run: Path):
        self._begin(run)

    def _begin(self, run: Path) -> None:
        import wandb

        config = read_config(run)
        named: dict[str, Any] = {"project": PROJECT, "name": run.resolve().name, "dir": run}
        own = {key: value for key, value in named.items() if not os.environ.get(f"WANDB_{key.upper()}")}
        # Without console and git: it would take over both streams, and search the folders above for a repository.
        settings = wandb.Settings(console="off", disable_git=True, disable_code=True)
        self._run = wandb.init(
            id=config.run_id, resume="allow", config=config.json(), allow_val_change=True, settings=settings, **own
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log numbers."""
        self._run.log({"step": step, **{key: value for key, value in values.items() if value is not None}})

    def picture(self, step: int, path: Path) -> None:
        """Log a picture."""
        import wandb

        self._run.log({"step": step, "samples": wandb.Image(str(path))})

    def move(self, run: Path) -> None:
        """Begin again: W&B writes into the folder by its name."""
        self.close()
        self._begin(run)

    def close(self) -> None:
        """Upload what is left, or keep it for `wandb sync`."""
        self._run.finish()
