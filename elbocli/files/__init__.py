"""elbo's files. `reading` and `atomic` read and write any file, `records` declare what it holds, `recognise` tells what a file is.

Each format has one owner: `checkpoint` (a run's folder), `dataset`, `tensor_files`, `pickles` and others. Begin with `records`.
"""
