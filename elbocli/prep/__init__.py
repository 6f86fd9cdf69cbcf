"""`elbo prep`: pack images into one dataset file."""
