"""Readers of images, one for each kind of file or folder.

A reader is a function decorated with @source; it yields (name, class or None, reference) for every image.
"""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
