"""Kinds of image sources, one file each: a function under @source that gives (name, class, reference) of each image.

`tar`, `zip` and `folder` list files, which `layouts.py` sorts into classes; the others have images and labels themselves.
"""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
