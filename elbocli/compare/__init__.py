"""`elbo compare`: scores of several sets of samples, and whether they can be told apart.

result.py compares results of `elbo eval`, and saved features image by image, and holds the JSON; command.py prints it.
"""
