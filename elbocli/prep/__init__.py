"""`elbo prep`: pack images into one elbo-dataset."""
