"""`elbo compare`: scores of several sets of samples, and whether they can be told apart."""
