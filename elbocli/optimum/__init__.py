"""`elbo optimum`: the least possible error of a denoiser on a set of images."""
