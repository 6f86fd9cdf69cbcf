"""`elbo adapt`: fit a schedule to loss logs, or to the least error on images. fit.py does both, and draws the results."""
