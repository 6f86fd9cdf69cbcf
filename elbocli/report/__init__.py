"""`elbo report`: a run on one page."""
