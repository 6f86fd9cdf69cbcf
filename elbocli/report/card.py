"""Write a run's model card for the Hugging Face Hub: Markdown that begins with metadata in YAML."""

import re
from pathlib import Path, PurePath

from elbocli.evaluate.result import code, fill_template, said
from elbocli.report.gather import RunFacts
from elbocli.report.results import score_rows
from elbocli.report.summary import BITS, logged
from elbocli.version import __version__

PREVIEW = re.compile(r"step-[0-9]+\.png")
PLAIN = re.compile(r"[A-Za-z][\w.-]*")  # a name that YAML takes without quotes


def model_card(facts: RunFacts) -> str:
    """Return a run's model card as Markdown."""
    run, family = facts.report, str(facts.report.network.get("family"))
    metrics = {row.name.replace(" ", "_") for result in facts.results["scores"] for row in score_rows(result.record)}
    figures = logged(facts)
    if any(row.unit.startswith(BITS) for row in figures):
        metrics.add("bits_per_dimension")
    preview = PurePath(run.samples.file).name
    values = {
        "facts": facts,
        "figures": figures,
        "version": __version__,
        "metrics": sorted(filter(PLAIN.fullmatch, metrics)),
        "family": family if PLAIN.fullmatch(family) else "",
        "name": PurePath(run.run).name,  # no path of the machine is published
        "environment": {key: PurePath(value).name if key == "init_run" else value for key, value in run.environment.items()},
        "file": PurePath(str(run.data.get("path") or "")).name,
        "picture": f"previews/{preview}" if PREVIEW.fullmatch(preview) else "",
    }
    # Text from files must appear only in code spans, and in YAML.
    filters = {"code": code, "said": said, "rows": score_rows}
    return fill_template(Path(__file__).with_name("model_card.md"), filters, values)
