"""File formats, one module each. Start with `records`, the base class of all file contents.

`reading` and `atomic` read and write any file. `recognise` detects the kind of a file.
"""
