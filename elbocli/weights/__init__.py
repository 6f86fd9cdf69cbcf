"""`elbo weights`: list, show, check and plot weightings."""
