"""`elbo bound`: the variational bound, other estimates of -log p, a check of the paper's theorem, a run as a classifier.

Begin with measure.py, which opens a run and a dataset, and evaluates a network on images at many noise levels. estimate.py
estimates -log p; judge.py has the theorem, the classifier, and errors above the least possible ones; result.py the JSON records.
"""
