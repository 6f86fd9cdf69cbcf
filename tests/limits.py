"""The limits of what elbo reads, from the constants that hold them.

`python tests/limits.py docs/limits.md` prints that page with a new table; tests/files/test_limits.py compares it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from elbocli.core import discrete_schedule
from elbocli.files import (
    dataset,
    dataset_block,
    dataset_file,
    feature_facts,
    losslog,
    opening,
    reading,
    schedule_file,
    strict_json,
    strict_yaml,
)
from elbocli.images import (
    archives,
    classes,
    decode,
    decode_apart,
    image_refs,
    labels,
    packed,
    samples,
    tar_headers,
)
from elbocli.images.crops import MOST_PIXELS
from elbocli.nn import autoencoder, networks
from elbocli.report import log_history
from elbocli.runtime import memory_bound

BEGIN, END = "<!-- tests/limits.py -->", "<!-- end -->"


def number(value: float) -> str:
    """A number for people."""
    if value < 1e9:
        return f"{value:,.0f}"
    digits, power = f"{value:.1e}".split("e+")
    return f"{float(digits):g} · 10^{int(power)}".removeprefix("1 · ")


def size(value: int) -> str:
    """Bytes for people."""
    for factor, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if value >= 1 << factor and value % (1 << factor) == 0:
            return f"{value >> factor} {unit}"
    return f"{value:,} bytes"


LIMITS: dict[str, list[str]] = {
    "any file": [
        f"a pipe, a device, a disk, a socket; samples and loss logs may come through a pipe that is written to within {opening.WAIT_S:g} s",
    ],
    "YAML: presets, configs, schedules": [
        size(reading.LARGEST_TEXT),
        f"{number(strict_yaml.MOST_VALUES)} keys and values",
        f"{strict_yaml.DEEPEST} lists and mappings inside each other",
        f"numbers of {strict_yaml.LONGEST_NUMBER} characters",
        f"{number(strict_yaml.LONGEST_SLOW)} characters, if a name in it is not UTF-8",
        "aliases; a key given twice",
    ],
    "JSON: results, status, meta.json, configs of diffusers, `about`": [
        f"{size(reading.LARGEST_TEXT)} (an autoencoder's {size(autoencoder.LARGEST_CONFIG)}, dataset.json {size(labels.LARGEST_LIST)})",
        f"{size(strict_json.LARGEST_PARSED)} of memory when it is read",
        f"{strict_json.DEEPEST} lists and objects inside each other",
        f"numbers of {strict_json.LONGEST_NUMBER} digits",
        "NaN and infinity; a key given twice",
    ],
    "loss logs, metrics": [
        f"lines of {size(reading.LONGEST_LINE)}",
        f"{number(losslog.MOST_BINS)} bins",
        f"{log_history.MOST_COLUMNS} names of numbers",
        f"steps and images above {number(10**15)}, or negative",
    ],
    "schedules": [
        f"{number(schedule_file.LARGEST_TABLE)} knots, or {number(discrete_schedule.MOST_TIMESTEPS)} timesteps"
    ],
    "networks in presets and configs": [
        f"images of {number(networks.LARGEST_SIDE)} pixels a side",
        f"{number(networks.MOST_TENSORS)} parameters, or {number(networks.MOST_VALUES)} values in them",
        f"lists of {networks.LONGEST_LIST} numbers; numbers above {number(networks.LARGEST_NUMBER)}",
    ],
    "datasets (HDF5)": [
        f"{number(dataset_file.MOST_IMAGES)} images, of {number(dataset.LARGEST_SIDE)} pixels a side or {number(dataset.LARGEST_LATENT)} numbers of a latent",
        "to train on: images that are not square",
        f"{number(dataset_file.MOST_CLASSES)} classes, or ten for each image",
        f"labels, names and attributes that take {size(memory_bound.MOST_MORE)} of memory, or {dataset_file.MEMORY_FACTOR} times their size in the file",
        f"chunks of {size(dataset_block.LARGEST_CHUNK)}, or that unpack to {size(memory_bound.MOST_MORE)}",
        f"{number(dataset_block.MOST_PARTS)} parts of a virtual dataset",
        "links to elsewhere",
    ],
    "samples and arrays (NPY, NPZ)": [
        f"images of {number(samples.LARGEST_SIDE)} pixels a side",
        "arrays of objects",
    ],
    "features, statistics of features": [f"features above {number(feature_facts.LARGEST_FEATURE)}"],
    "`state.pt`, weights of extractors, checkpoints to import": ["tensors with more values than are stored"],
    "zip": [
        f"members of {size(image_refs.LARGEST_FILE)}",
    ],
    "tar": [
        f"headers of {size(tar_headers.LONGEST_HEADER)} for a file; numbers of {tar_headers.LONGEST_NUMBER} digits",
        f"{number(tar_headers.MOST_GLOBAL)} words for all files",
        f"tars inside each other, {archives.DEEPEST} deep",
        f"gzip: {size(packed.LARGEST_UNPACKED)} unpacked",
    ],
    "images": [
        f"formats other than {', '.join(decode.FORMATS)}",
        f"{size(image_refs.LARGEST_FILE)}; {number(MOST_PIXELS)} pixels; sides that differ {decode.MAX_ASPECT}-fold",
        f"a TIFF's tiles of {number(decode.LARGEST_TILE)} pixels that are larger than the image",
        f"{number(decode.MOST_SCANNED)} pixels of all scans of a progressive JPEG",
        f"{' and '.join(decode_apart.APART)}: {size(decode_apart.LARGEST_PROCESS)} of memory, {decode_apart.PATIENCE_S:g} s",
    ],
    "`--classes meta.mat`": [size(classes.LARGEST_META)],
}
"""By the kind of file, what is refused: anything above the number said."""


def page() -> str:
    """The table."""
    rows = [
        f"| {kind if limit is limits[0] else ''} | {limit} |" for kind, limits in LIMITS.items() for limit in limits
    ]
    return "\n".join([BEGIN, "", "| file | refused above, or if it has |", "|---|---|", *rows, "", END])


def renewed(text: str) -> str:
    """A page with the table in place of the one that it has."""
    return text[: text.index(BEGIN)] + page() + text[text.index(END) + len(END) :]


if __name__ == "__main__":
    print(renewed(Path(sys.argv[1]).read_text("utf-8")), end="")
