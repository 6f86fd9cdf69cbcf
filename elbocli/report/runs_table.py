"""Progress and latest results of runs."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from elbocli.errors import ElboError
from elbocli.files.losslog import EVAL, read_metrics
from elbocli.files.records import JSON
from elbocli.runs.config import RunConfig, read_config
from elbocli.runs.folder import RUNNING, read_status
from elbocli.runtime.table import Table

Row = dict[str, JSON]  # a run's values by the names of their columns
METRICS = ("loss", "val_loss", "val_bpd")


def is_score(name: str) -> bool:
    """Return whether a column of metrics.jsonl has values of a score, and not facts about the scoring."""
    return name.startswith(EVAL) and name not in (f"{EVAL}samples", f"{EVAL}s")


def progress_of(run: Path, config: RunConfig) -> Row:
    """Return a run's status, its speed, the seconds left, and the last value of each loss and score; {}: no status.json."""
    if not (run / "status.json").exists():
        return {}
    status = read_status(run)
    metrics = dict[str, JSON]()  # the last value of each
    for row in read_metrics(run / "metrics.jsonl"):
        metrics |= row.values
    seconds = None
    if status.state == RUNNING and status.images_per_s:
        seconds = round((status.steps - status.step) * config.settings.batch_size / status.images_per_s)
    scores = filter(is_score, metrics)
    return {
        **status.facts(),
        "time": datetime.fromtimestamp(status.time).astimezone().isoformat(timespec="seconds"),
        "seconds_left": seconds,
        **{name: metrics[name] for name in (*METRICS, *scores) if name in metrics},
    }


def progress_of_runs(runs: Sequence[Path]) -> list[Row]:
    """Return a row for each run, with equal keys: progress, and the settings of weights that differ. None: no such value."""
    configs = [read_config(run) for run in runs]
    settings = [
        {
            **config.recipe(),
            "seed": config.settings.seed,
            **{f"network.{key}": value for key, value in config.network.items()},
            "data": config.data.path,
        }
        for config in configs
    ]
    keys = dict.fromkeys(key for one in settings for key in one)
    differing = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    rows = []
    for run, config, setting in zip(runs, configs, settings):
        progress: Row = {"state": "unknown"}
        try:
            progress |= progress_of(run, config)
        except ElboError as error:
            progress["message"] = error.for_command_line
        rows.append({"run": str(run), **progress, **{key: setting.get(key) for key in differing}})
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def table_of_runs(rows: Sequence[Row]) -> Table:
    """Return a table of rows from `progress_of_runs`."""
    names = [name for name in rows[0] if name not in ("steps", "images", "time", "saved", "message")]
    names = [name for name in names if any(row[name] is not None for row in rows)]
    cells = []
    for row in rows:
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        shown["step"] = f"{row.get('step')} of {row.get('steps')}" if row.get("steps") else None
        if isinstance(seconds := row.get("seconds_left"), int):
            shown["seconds_left"] = str(timedelta(seconds=seconds))
        cells.append([str(shown[name]) if isinstance(shown[name], list) else shown[name] for name in names])
    heads = [{"images_per_s": "images/s", "seconds_left": "time left", "val_bpd": "bits/dim"}.get(name, name) for name in names]
    notes = [f"{row['run']}: {row['message']}" for row in rows if row.get("message")]
    if "weighting" in names and "loss" in names:
        notes.append("Losses of different weightings don't compare; bits/dim, scores and results of 'elbo bound' do.")
    return Table("", heads, cells, notes=notes)
