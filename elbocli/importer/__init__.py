"""`elbo import`: a run made of somebody else's checkpoint."""
