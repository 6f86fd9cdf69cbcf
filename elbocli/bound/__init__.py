"""`elbo bound`: the variational bound, other estimates of -log p, a check of the paper's theorem, a run as a classifier.

Begin with measure.py, which opens a run and a dataset, and evaluates a network on images at many noise levels. estimate.py
estimates -log p; judge.py checks the theorem, judges a run as a classifier, and compares errors with the least possible
errors; result.py defines the JSON records.
"""
