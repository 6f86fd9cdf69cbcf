"""`elbo adapt`: fit a schedule to loss logs."""
