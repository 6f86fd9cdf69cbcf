"""`elbo compare`: differences between the scores of several sets of samples, and whether they are significant.

result.py compares results of `elbo eval`, or saved features image by image, and defines the JSON output; command.py prints it.
"""
