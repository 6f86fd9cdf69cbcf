"""`elbo bound`: the variational bound, other estimates of -log p, the theorem checked, a run as a classifier.

Begin with measure.py, which asks any network about images at many noise levels, and opens a run and a dataset. estimate.py
has all estimates of -log p; judge.py the theorem, the classifier and the excess; result.py the records that are printed.
"""
