"""`elbo compare`: test whether the scores of several sets of samples differ significantly.

result.py compares the scores and defines the JSON output; command.py prints the output.
"""
