"""`elbo compare`: scores of several sets of samples, and whether they can be told apart.

result.py compares results of `elbo eval` and holds the JSON; features.py compares saved features image by image.
"""
