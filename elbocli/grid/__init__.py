"""`elbo grid`: the levels that a sampler visits, made for a run."""
