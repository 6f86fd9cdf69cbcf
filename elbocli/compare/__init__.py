"""`elbo compare`: test whether the scores of several sets of samples differ significantly."""
