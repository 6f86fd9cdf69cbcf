"""`elbo prep`: images packed into one elbo-dataset."""
