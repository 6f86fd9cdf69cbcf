"""`elbo merge`: one dataset of several."""
