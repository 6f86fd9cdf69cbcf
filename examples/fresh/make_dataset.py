"""Write a dataset that no preset of elbo was chosen by, as PNG files: FOLDER/train and FOLDER/test.

    apt-get install fonts-aenigma
    python make_dataset.py letters FOLDER        # grey, 24 pixels, 26 classes: A to Z in 465 fonts
    apt-get install budgie-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds
    python make_dataset.py photographs FOLDER    # colour, 64 pixels, no classes: crops of 47 photographs

Then, for both networks of tools/bench/equal_time.py:

    elbo prep FOLDER/train train.h5 --size 24 --channels 1
    elbo prep FOLDER/test test.h5 --size 24 --channels 1
    python examples/digits/make_classifier.py train.h5 test.h5 classifier.pt2 --epochs 10

The test images show other things than the training images: other families of fonts, other photographs. The same packages give the
same files. For the classifier of photographs, whose features are compared, FOLDER/features has the crops of the training photographs
in a class per photograph.

Licences. Fonts: Brian Kent's, who permits use, change and redistribution with attribution (the package's copyright file).
Photographs: CC0 1.0 (budgie-backgrounds), CC BY 4.0, CC BY-SA 3.0 and 4.0 (lomiri-wallpapers), GPL 2 or later
(mate-backgrounds), and those of scikit-image (public domain or CC0) and scikit-learn (CC BY 2.0), which come with them.
"""

import argparse
import hashlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_SIZE = 24
PHOTOGRAPH_SIZE = 64
MARGIN = 2
"""Pixels around a letter."""
LARGE = 160
"""Size at which fonts are drawn, before they are reduced."""
HELD_OUT = 5
"""One family or photograph in so many is for the test."""
CROPS = 200
"""Crops of each photograph."""
LEAST = 1 / 6
"""Smallest crop, as a share of a photograph's shorter side; the largest is the whole side."""
SHARE = Path("/usr/share")
FONTS = SHARE / "fonts/truetype/aenigma"
BACKGROUNDS = SHARE / "backgrounds"
DRAWN = {"valley-midnight", "waves-midnight", "ocean-waves", "umang_by", "analogpattern", "Fossa_by", "Infinite-Sea", "Painting"}
"""Backgrounds that are drawings; by the beginnings of their names."""
PACKED = {
    "skimage.data": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}
"""Module → photographs in its folder."""


def digest(name: str) -> int:
    """Return a number that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def parts(names: list[str]) -> dict[str, str]:
    """Return 'train' or 'test' for each name: one in HELD_OUT is for the test, those of the least digests."""
    ordered = sorted(set(names), key=digest)
    return {name: "test" if i * HELD_OUT < len(ordered) else "train" for i, name in enumerate(ordered)}


# Letters


def family(font: ImageFont.FreeTypeFont) -> str:
    """Return the first word of a font's family, without digits: variants of one design share it."""
    words = re.findall(r"[A-Za-z]{3,}", font.getname()[0] or "")
    return (words or [str(font.getname()[0])])[0].lower()


def letter(font: ImageFont.FreeTypeFont, text: str) -> np.ndarray | None:
    """Return a letter, white on black, uint8 [24, 24]; None if the font has none or draws nothing."""
    left, top, right, bottom = (int(side) for side in font.getbbox(text))
    width = right - left
    height = bottom - top
    if width < LARGE // 16 or height < LARGE // 16:
        return None
    side = max(width, height)
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text(((side - width) // 2 - left, (side - height) // 2 - top), text, fill=255, font=font)
    room = LETTER_SIZE - 2 * MARGIN
    image = Image.new("L", (LETTER_SIZE, LETTER_SIZE))
    image.paste(canvas.resize((room, room), Image.Resampling.BOX), (MARGIN, MARGIN))
    pixels = np.asarray(image)
    return pixels if pixels.std() > 8 else None


def letters(folders: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield (path within the folder, image) for each capital of each font, without repeats within a font or between fonts."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    fonts = {path: ImageFont.truetype(str(path), LARGE) for path in files}
    families = {path: family(font) for path, font in fonts.items()}
    part = parts([*families.values()])
    seen = set[bytes]()
    for path, font in fonts.items():
        missing = letter(font, "\uffff")  # a box, or nothing
        drawn = {text: image for text in LETTERS if (image := letter(font, text)) is not None}
        if missing is not None:
            drawn = {text: image for text, image in drawn.items() if not np.array_equal(image, missing)}
        if len({image.tobytes() for image in drawn.values()}) < len(LETTERS):
            continue  # symbols, or letters that are missing
        for text, image in drawn.items():
            if image.tobytes() not in seen:
                seen.add(image.tobytes())
                yield Path(part[families[path]], text, f"{path.stem}.png"), image


# Photographs


def photographs() -> list[Path]:
    """Return the photographs that are installed."""
    from importlib.util import find_spec

    folders = [BACKGROUNDS / "budgie", BACKGROUNDS / "mate/nature", BACKGROUNDS]
    found = [path for folder in folders for path in folder.glob("*.jpg") if not path.name.startswith(tuple(DRAWN))]
    for module, names in PACKED.items():
        spec = find_spec(module)
        found += [Path(place) / name for place in (spec.submodule_search_locations or () if spec else ()) for name in names]
    return sorted((path for path in found if path.exists()), key=lambda path: path.name)


def crops(path: Path) -> Iterator[Image.Image]:
    """Yield square crops of a photograph, at random places and of sides that are uniform in their logarithm."""
    random = np.random.default_rng(digest(path.name))
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    most = round(PHOTOGRAPH_SIZE / LEAST)  # a smaller crop would be enlarged
    if min(image.size) > most:
        image = ImageOps.cover(image, (most, most), Image.Resampling.LANCZOS)
    shorter = min(image.size)
    for _ in range(CROPS):
        side = max(PHOTOGRAPH_SIZE, round(shorter * LEAST ** random.random()))
        left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
        yield image.resize((PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def cut() -> Iterator[tuple[Path, np.ndarray]]:
    """Yield (path within the folder, image) for each crop."""
    paths = photographs()
    part = parts([path.name for path in paths])
    for path in paths:
        where = part[path.name]
        for i, crop in enumerate(crops(path)):
            yield Path(where, f"{path.stem}-{i:03d}.png"), np.asarray(crop)
            if where == "train":
                yield Path("features", "test" if i % HELD_OUT == 0 else "train", path.stem, f"{i:03d}.png"), np.asarray(crop)


def main() -> None:
    """Write the dataset that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("letters", "photographs"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fonts", type=Path, nargs="+", default=[FONTS], metavar="DIR", help=f"of letters (default: {FONTS})")
    options = parser.parse_args()
    counts: dict[str, int] = defaultdict(int)
    for path, image in letters(options.fonts) if options.kind == "letters" else cut():
        out = options.folder / path
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(out)
        counts[path.parts[0]] += 1
    if not counts["train"] or not counts["test"]:
        where = ", ".join(map(str, options.fonts)) if options.kind == "letters" else str(BACKGROUNDS)
        sys.exit(f"make_dataset.py: error: {where}: too few {options.kind} are there; install the packages that --help names")
    print(f"{counts['train']} training images and {counts['test']} test images in {options.folder}")


if __name__ == "__main__":
    main()
