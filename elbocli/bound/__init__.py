"""`elbo bound`: the variational bound, other estimates of -log p, the theorem checked, a run as a classifier.

Begin with draws.py, which asks any network about images at many noise levels, and measure.py, which opens a run and a
dataset. estimate.py, likelihood.py (estimators.py declares the methods of methods.py), theorem.py, classify.py and excess.py
answer one question each; result.py holds the records that are printed.
"""
