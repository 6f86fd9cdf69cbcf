"""`elbo adapt`: fit a schedule to loss logs, or to the least possible error on images."""
