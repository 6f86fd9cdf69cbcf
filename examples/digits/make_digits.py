"""Write scikit-learn's digits (1797 real images of 8 x 8 pixels) as PNG files: DIR/train/CLASS/ and DIR/test/CLASS/."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("dir", type=Path)
folder = parser.parse_args().dir

digits = load_digits()
pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
    path = folder / ("test" if index % 4 == 3 else "train") / str(label) / f"{index:04d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
print(f"{len(pixels)} images in {folder}")
