"""`elbo bound`: estimate -log p of images under a run, check VDM++'s theorem, and use a run as a classifier.

Begin reading with measure.py, which evaluates the network of a run on images at many noise levels.
"""
