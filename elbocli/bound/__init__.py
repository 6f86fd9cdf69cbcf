"""`elbo bound`: the variational bound, other estimates of -log p, the theorem checked, a run as a classifier.

Begin with measure.py, which asks any network about images at many noise levels, and opens a run and a dataset. estimate.py,
likelihood.py, theorem.py and classify.py answer one question each; result.py holds the records that are printed.
"""
