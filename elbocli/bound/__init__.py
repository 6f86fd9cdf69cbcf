"""`elbo bound`: the variational bound, the theorem checked, the variance of gradients."""
