"""`elbo import`: a run made of somebody else's checkpoint.

make_run.py has the steps from a file to a run; formats/ has a module for each family of formats, formats.yaml their
descriptions and the names in their files, and formats/__init__.py what they share: choosing weights in a file, and matching
their names with those of a network. Start with make_run.py.
"""
