"""`elbo adapt`: a schedule fitted to loss logs, or to the least error on images; fit.py does both, and draws them."""
