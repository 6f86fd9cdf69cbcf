"""The messages of `elbo prep`: what it found, what it skipped and changed, and how long it took."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elbocli.files.atomic import new_file
from elbocli.images.decode import DecodeOptions
from elbocli.images.labels import utf8
from elbocli.images.sources import Source
from elbocli.runtime.progress import Progress

SPLIT_NAMES = {"train", "val", "test", "valid", "validation", "training", "testing"}


def count(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else many}"


def named(sources: list[Path]) -> str:
    """The sources in few words."""
    return str(sources[0]) if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"


def introduced(source: Source, sources: list[Path], how: DecodeOptions, complaints: list[str]) -> Iterator[Progress]:
    """Say what was found. complaints: of damaged archives."""
    classes = source.class_names
    found = f"{count(len(source), 'image', 'images')} in {count(len(classes), 'class', 'classes')}"
    shape = f"{how.size} x {how.size} x {how.channels}"
    yield Progress(0, len(source), "img", f"{named(sources)}: {found} -> {shape}")
    warnings = [*complaints, *source.notes]
    if len(classes) > 1 and set(classes) <= SPLIT_NAMES:
        warnings.append(f"the classes are called {', '.join(classes)}: did you mean one of these folders?")
    yield from (Progress(message=text, level="warning") for text in warnings)


def list_skipped(out: Path, source: Source, skipped: dict[int, str]) -> Iterator[Progress]:
    """List what was skipped in a file beside the dataset. skipped: the trouble by the image's index."""
    sidecar = out.with_name(out.name.removesuffix(".h5") + ".skipped.jsonl")
    if not skipped:
        sidecar.unlink(missing_ok=True)
        return
    with new_file(sidecar, "w") as file:
        for index, trouble in sorted(skipped.items()):
            file.write(json.dumps({"file": utf8(source.files[index]), "trouble": trouble}) + "\n")
    kinds = Counter(trouble.partition(":")[0] for trouble in skipped.values())
    kinds_said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    yield Progress(message=f"{len(skipped)} files skipped ({kinds_said}), listed in {sidecar}", level="warning")


def summed_up(out: Path, packed: int, rows: int, notes: dict[str, Any], seconds: float) -> Iterator[Progress]:
    """Say what was changed while decoding, how large the dataset is, and how fast it was packed."""
    changed = ", ".join(f"{count} {change}" for change, count in sorted(notes["changed"].items()))
    if changed:
        lost = "alpha" in changed or "made grey" in changed
        yield Progress(message=f"changed while decoding: {changed}", level="warning" if lost else "info")
    rate = f"{packed / seconds:.0f} images/s, " if packed else ""
    size = out.stat().st_size
    shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    yield Progress(message=f"{out}: {count(rows, 'image', 'images')}, {shown}; {rate}{seconds:.1f} s")
