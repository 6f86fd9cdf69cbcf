"""`elbo sample`: images drawn from a run."""
