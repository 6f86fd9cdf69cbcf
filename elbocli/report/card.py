"""Write a run's model card for the Hugging Face Hub: Markdown with a block of metadata."""

import re
from pathlib import Path, PurePath

from elbocli.evaluate.result import code, fill_template, said
from elbocli.files.yaml_text import yaml_text
from elbocli.report.gather import RunFacts
from elbocli.report.results import score_rows

PREVIEW = re.compile(r"step-[0-9]+\.png")
# The Hugging Face Hub accepts only licences that it knows; "unknown" is one of them.
FILL_IN = "license: unknown  # fill in the identifier of your licence; and, where the hub has the dataset, add datasets: [NAME]\n"


def metadata(facts: RunFacts) -> str:
    """Return the card's YAML block, without its fences."""
    family = str(facts.report.network.get("family"))
    metrics = {row.name.replace(" ", "_") for result in facts.results["scores"] for row in score_rows(result.found)}
    if any(row.unit.startswith("bits per dimension") for row in facts.logged):
        metrics.add("bits_per_dimension")
    block = yaml_text(
        {
            "library_name": "elbo",
            "license": "unknown",
            # The hub has no task for classes, and lists class-conditional networks under this task, too.
            "pipeline_tag": "unconditional-image-generation",
            "tags": [
                "elbo",
                "diffusion",
                "image-generation",
                *(["class-conditional"] if facts.report.network.get("num_classes") else []),
                *([family] if re.fullmatch(r"[\w.-]+", family) else []),
            ],
            **({"metrics": sorted(metrics)} if metrics else {}),
        }
    )
    return block.replace("license: unknown\n", FILL_IN)


def model_card(facts: RunFacts, previews: Path) -> str:
    """Return a run's model card as Markdown. previews: folder of pictures; the card shows the last."""
    run = facts.report
    sheets = sorted(path.name for path in previews.glob("step-*.png") if PREVIEW.fullmatch(path.name))
    values = {
        "facts": facts,
        "metadata": metadata(facts),
        "name": PurePath(run.run).name,  # no path of the machine is published
        "environment": {key: PurePath(value).name if key == "init_run" else value for key, value in run.environment.items()},
        "file": PurePath(str(run.data.get("path") or "")).name,
        "picture": f"previews/{sheets[-1]}" if sheets else "",
    }
    # Text from files must appear only in code spans, and in YAML.
    filters = {"code": code, "said": said, "rows": score_rows}
    return fill_template(Path(__file__).with_name("model_card.md"), filters, values)
