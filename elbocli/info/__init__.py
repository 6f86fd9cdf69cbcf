"""`elbo info`: what a file is, and whether it still is what was written."""
