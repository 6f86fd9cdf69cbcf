"""Runs of `elbo eval`'s loop, for tests that look at what it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elbocli.core.metrics import METRICS, asked
from elbocli.evaluate import scoring
from elbocli.evaluate.result import EvalResult
from elbocli.evaluate.settings import EvalSettings


def found_of(samples: Path | list[Path], ref: Path | None, metrics: tuple[str, ...], **settings: Any) -> EvalResult:
    """The result; options of metrics are told from other settings by their names."""
    own = {each.name for metric in METRICS.values() for each in metric.traits.options}
    options = {key: settings.pop(key) for key in list(settings) if key in own}
    chosen = EvalSettings(**{"extractor": "elbo-tiny", "metrics": asked(metrics, **options), **settings})
    found = scoring.run(samples if isinstance(samples, list) else [samples], ref, chosen)
    assert found is not None
    return found


def score(samples: Path | list[Path], ref: Path | None, metrics: tuple[str, ...], **settings: Any) -> dict[str, Any]:
    """The same as JSON, which reads back as it was."""
    text = json.dumps(found_of(samples, ref, metrics, **settings).json(), allow_nan=False)
    assert json.dumps(EvalResult.of(json.loads(text)).json()) == text
    return json.loads(text)  # type: ignore[no-any-return]
