"""`elbo report`: one run or several on a page."""
