"""File formats. `reading` and `atomic` read and write any file, `records` declares contents, `recognise` detects a file's kind.

Each format has one module: `checkpoint` (the run folder), `dataset`, `tensor_files`, `pickles` and others. Start with `records`.
"""
