"""`elbo bound`: the variational bound, the theorem checked."""
