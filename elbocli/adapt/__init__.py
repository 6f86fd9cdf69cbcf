"""`elbo adapt`: a schedule fitted to loss logs."""
