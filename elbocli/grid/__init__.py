"""`elbo grid` chooses the noise levels that a sampler visits, for a given run."""
