"""Odd and hostile inputs: each does what tests/odd_inputs.py declares, alone and all together."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_inputs import ODD, Odd, Outcome, described, open_folder, outcome

ROOT = Path(__file__).parents[2]
IMAGES = [odd for odd in ODD if not odd.archive]
FOUND: dict[str, Outcome] = {}


@pytest.fixture(params=ODD, ids=lambda odd: odd.name.encode("ascii", "backslashreplace").decode())
def odd(request: pytest.FixtureRequest) -> Odd:
    return request.param


def found_for(odd: Odd) -> Outcome:
    if odd.name not in FOUND:
        with open_folder() as folder:
            FOUND[odd.name] = outcome(odd, folder)
            source = odd.name if odd.archive else "src"
            left = {path.name for path in folder.iterdir() if not path.name.startswith(("out.", "stop."))}
            assert left == {source}, "something was unpacked"
    return FOUND[odd.name]


def test_it_is_packed_or_refused_as_declared(odd: Odd) -> None:
    found = found_for(odd)
    assert found.packed == odd.packed
    if odd.pixels is not None:
        assert np.array_equal(found.pixels, odd.pixels)


def test_what_is_said_names_it_and_is_declared(odd: Odd) -> None:
    found = found_for(odd)
    assert re.search(odd.says, found.says) if odd.says else found.says == ""
    assert found.says.isprintable()
    if ":" in odd.says or (not odd.packed and odd.says):
        assert odd.name.replace("\n", r"\n") in found.says
    if "add --on-error skip" in found.says and not odd.archive:
        assert found.warned[0].endswith("8 x 8 x 3") and len(found.warned) >= 2


def test_what_is_skipped_is_listed_with_its_trouble(odd: Odd) -> None:
    found = found_for(odd)
    listed = [json.loads(line) for line in found.skipped.splitlines()]
    assert any(f"{len(listed)} files skipped" in message for message in found.warned) == bool(listed)
    if found.says.endswith("; remove it, or add --on-error skip") and (found.packed or not odd.archive):
        assert listed[0]["trouble"] in found.says


def test_the_page_in_the_docs_is_what_comes_out() -> None:
    page = (ROOT / "docs" / "odd-images.md").read_text()
    made = [described(odd, found_for(odd)) for odd in ODD]
    assert page.splitlines()[-len(made) :] == made, "run make docs"


# All together

PACK = """
import sys
from pathlib import Path
from elbocli.prep import pack as prep
sources, out, workers = [Path(name) for name in sys.argv[3:]], Path(sys.argv[1]), int(sys.argv[2])
for report in prep.run(sources, out, prep.Settings(size=64, on_error="skip", workers=workers)):
    if report.message:
        print(report.message.encode("ascii", "backslashreplace").decode())
assert "torch" not in sys.modules
"""
# The largest size of this program alone: getrusage's begins with that of the one that started it.
PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """(a folder with every odd file in one class and every archive of tar beside them, the sources to pack)."""
    folder = tmp_path_factory.mktemp("everything") / "in"
    (folder / "images" / "odd").mkdir(parents=True)
    sources = [folder / "images"]
    for odd in ODD:
        if odd.archive:
            odd.put(folder / odd.name)
            if odd.packed:
                sources.append(folder / odd.name)
        else:
            odd.put(folder / "images" / "odd" / odd.name)
    return folder, sources


@needs_proc
@pytest.mark.parametrize("workers", [1, 8])
def test_all_of_them_together_take_less_than_a_gigabyte(
    everything: tuple[Path, list[Path]], tmp_path: Path, workers: int
) -> None:
    folder, sources = everything
    before = sorted(folder.rglob("*"))
    line = [sys.executable, "-c", PACK + PEAK, str(tmp_path / "out.h5"), str(workers), *map(str, sources)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    readable = sum(odd.nobody for odd in ODD) if os.geteuid() == 0 else 0
    assert f"out.h5: {sum(odd.packed for odd in ODD) + readable} images" in done.stdout
    assert sorted(folder.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "out.skipped.jsonl"]
    assert int(done.stdout.split()[-1]) < 1_000_000


MEASURE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from elbocli.errors import DataError
from elbocli.images import decode as pixels
from elbocli.images import memory_budget as memory
memory.return_freed()
content = Path(sys.argv[1]).read_bytes()
how = pixels.DecodeOptions(64, background=sys.argv[2], crop=sys.argv[3])
def one(_):
    try:
        return pixels.square(content, how)[1]
    except DataError as error:
        return str(error)
with ThreadPoolExecutor(8) as pool:
    print(*set(pool.map(one, range(int(sys.argv[4])))))
"""


def measured(
    tmp_path: Path,
    image: Image.Image,
    kind: str,
    times: int = 2,
    background: str = "",
    crop: str = "center",
    **options: object,
) -> tuple[str, int]:
    """(what was said, megabytes) of decoding a large image several times at once."""
    image.save(tmp_path / "large", kind, **options)  # type: ignore[arg-type]
    line = [sys.executable, "-c", MEASURE + PEAK, str(tmp_path / "large"), background, crop, str(times)]
    said, size = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    return said, int(size) // 1000


LARGEST = (9459, 9459)


@needs_proc
@pytest.mark.parametrize(
    ("mode", "background", "crop", "said"),
    [
        ("RGBA", "white", "center", "alpha blended"),
        pytest.param("I;16", "", "edm", "16-bit scaled", marks=pytest.mark.slow),
        pytest.param("LA", "", "center", "alpha dropped", marks=pytest.mark.slow),
    ],
)
def test_the_largest_images_decoded_at_once_take_less_than_a_gigabyte(
    tmp_path: Path, mode: str, background: str, crop: str, said: str
) -> None:
    found, size = measured(tmp_path, Image.new(mode, LARGEST), "png", 2, background, crop, compress_level=1)
    assert found == said
    assert size < 1000, size


@needs_proc
def test_a_middling_image_on_every_thread_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    found, size = measured(tmp_path, Image.new("CMYK", (4000, 4000)), "tiff", 12, compression="tiff_lzw")
    assert found == "CMYK converted"
    assert size < 1000, size


@needs_proc
def test_formats_that_take_more_memory_take_fewer_pixels(tmp_path: Path) -> None:
    image = Image.new("RGB", (7000, 6600))
    found, size = measured(tmp_path, image, "webp", 1, method=0)
    assert found == "too many pixels for WEBP, which takes much memory to decode: 7000 x 6600"
    assert size < 200
    found, size = measured(tmp_path, image.resize((7000, 6300)), "webp", 2, method=0)
    assert found == "" and size < 1000
