"""File formats, one module each, such as `checkpoint` (the run folder), `dataset`, `tensor_files` and `pickles`.

Shared modules: `reading` and `atomic` read and write any file, `records` has the base class of all file contents, and
`recognise` detects the kind of a file. Start with `records`.
"""
