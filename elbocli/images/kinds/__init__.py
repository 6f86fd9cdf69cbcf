"""Kinds of image sources: a function under @source that gives (name, class, reference) of each image.

`trees` lists the files of folders and archives, which `sources.py` sorts into classes; the others have images and labels.
"""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
