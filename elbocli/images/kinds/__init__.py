"""Kinds of image sources: each is a function under @source that yields (name, class, reference) for every image.

`trees` lists the files of folders and archives, which `sources.py` sorts into classes; the other kinds contain images and labels.
"""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
