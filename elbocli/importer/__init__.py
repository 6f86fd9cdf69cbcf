"""`elbo import`: make a run from a checkpoint of another program.

make_run.py holds the steps from a file to a run. formats/ has a module for each family of formats; formats.yaml describes the
formats, and lists the names of weights in their files. formats/__init__.py holds what the formats share: choosing weights in a
file, and mapping the names of weights to those of a network. Start with make_run.py.
"""
