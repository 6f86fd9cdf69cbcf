"""`elbo optimum`: the least error that any denoiser of a set of images can have. find.py computes it."""
