"""`elbo import`: make a run from a checkpoint of another program.

Start with make_run.py, which makes the run. formats/ has a module for each family of formats; formats.yaml lists the formats.
"""
