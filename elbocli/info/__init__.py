"""`elbo info`: describe a file, and verify its digests."""
