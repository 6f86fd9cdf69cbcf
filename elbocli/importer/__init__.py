"""`elbo import`: make a run from a checkpoint of another program.

Start with make_run.py. formats/ has a module for each family of formats.
"""
