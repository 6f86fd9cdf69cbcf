"""`elbo bound`: the variational bound, other estimates of -log p, a check of the paper's theorem, a run as a classifier.

Begin with measure.py, which evaluates a network on images at many noise levels, and opens a run and a dataset. estimate.py
has all estimates of -log p; judge.py the theorem, the classifier and the excess error; result.py the JSON records.
"""
